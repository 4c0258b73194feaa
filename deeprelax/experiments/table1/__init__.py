"""The paper's Table 1 and Figure 2: what a run is, runs it, keeps it, reports it."""
