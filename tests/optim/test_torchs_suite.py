"""Every test of torch's test_optim.py: the one here that holds its promise, or why it has none for our optimizers."""

from __future__ import annotations

import re
from pathlib import Path

from test_torchs_direction import database

TESTS = Path(__file__).parents[1]

# The file under tests/ and its test: those of torch's that make the same promise.
HELD = {
    "optim/test_torchs_direction.py": {
        "test_the_errors_that_all_of_torchs_optimizers_raise_are_raised": ["test_errors"],
        "test_groups_move_in_the_right_direction_under_every_scheduler": [
            "test_forloop_goes_right_direction",
            "test_param_group_with_lrscheduler_goes_right_direction",
        ],
        "test_a_group_without_weight_decay_moves_in_the_right_direction": ["test_param_groups_weight_decay"],
        "test_a_rate_of_nearly_zero_stops_its_own_group_only": ["test_param_groups_lr"],
        "test_parameters_that_are_all_frozen_stay_unchanged": ["test_step_is_noop_when_params_have_no_grad"],
        "test_gradients_of_zero_change_nothing": ["test_step_is_noop_for_zero_grads"],
    },
    "optim/test_optimizer_api.py": {
        "test_a_tensor_lr_gives_the_numbers_bits_under_a_scheduler": ["test_tensor_lr"],
        "test_lr_schedulers_set_what_the_next_outer_step_uses": ["TestLRScheduler"],
        "test_after_eval_an_averaged_model_averages_x": ["TestSWAUtils"],
    },
    "optim/test_groups_and_parameters.py": {
        "test_repr_shows_hyper_parameters_and_not_the_clock": ["test_optimizer_can_be_printed"],
    },
    "optim/test_torchs_implementations.py": {
        "test_kernels_follow_the_reference_in_mixed_dtypes_and_while_frozen": [
            "test_foreach_matches_forloop",
            "test_fused_matches_forloop",
            "test_mixed_device_dtype",
        ],
    },
    "optim/test_torchs_state.py": {
        "test_two_with_one_saved_state_stay_equal_with_names_or_without": [
            "test_state_dict_deterministic",
            "test_can_load_from_to_named_state_dict",
        ],
        "test_hooks_around_saving_may_add_anything_to_the_state": [
            "test_state_dict_pre_hook",
            "test_state_dict_post_hook",
            "test_state_dict_pre_post_hook",
        ],
        "test_hooks_before_loading_run_in_order_and_those_after_see_it_loaded": [
            "test_load_state_dict_pre_hook_and_prepend",
            "test_load_state_dict_post_hook",
            "test_load_state_dict_pre_post_hook",
        ],
        "test_global_hooks_run_outside_an_optimizers_own_until_removed": [
            "test_step_pre_hook",
            "test_step_post_hook",
            "test_step_all_hooks",
        ],
        "test_a_deep_copy_has_every_public_attribute": ["test_deepcopy_copies_all_public_attrs"],
    },
    "optim/test_state_dict.py": {
        "test_a_run_continued_in_a_new_process_equals_the_uninterrupted_run": [
            "test_save_load_equality_with_weights_only"
        ],
        "test_state_has_each_parameters_shape_from_construction_on": ["test_non_empty_state"],
    },
    "optim/test_numbers.py": {
        "test_a_state_of_version_0_1_loads_and_continues": ["test_can_load_older_state_dict"],
    },
    "optim/test_capturable.py": {
        "test_checkpoints_pass_between_capturable_and_not": ["test_cpu_load_state_dict"],
    },
    "optim/test_grad_scaler.py": {
        "test_a_skipped_step_changes_nothing": ["test_fused_does_not_step_if_foundinf"],
    },
    "optim/test_memory.py": {
        "test_gradients_are_left_as_they_are": ["test_grads_are_never_inplaced_into"],
        "test_nothing_is_allocated_per_step": ["test_peak_memory_foreach"],
        "test_the_default_dtype_does_not_matter": ["test_set_default_dtype_works_with_foreach"],
    },
    "optim/test_bad_input.py": {
        "test_a_parameter_on_the_meta_device_is_refused": ["test_fused_error_on_params_on_meta"],
    },
    "optim/test_fallback.py": {
        "test_the_compiled_backend_does_not_warn": ["test_defaults_changed_to_foreach"],
    },
    "optim/test_optimizer_phases.py": {
        "test_the_phase_counts_the_gradients_of_the_cycle": ["test_step_iteration"],
    },
    "optim/test_state_dict_loading.py": {
        "test_a_model_moved_or_cast_before_loading_is_adopted": ["test_state_dict_with_cuda_params"],
    },
    "gpu/test_gpu_large.py": {
        "test_a_tensor_beyond_2_to_31_elements_is_right_everywhere": [
            "test_foreach_large_tensor",
            "test_fused_large_tensor",
        ],
    },
    "gpu/test_gpu_runs.py": {
        "test_a_long_run_gives_the_bits_of_the_reference_on_the_cpu": ["test_fused_cpu_matches_cuda"],
    },
    "optim/test_compile.py": {
        "test_a_compiled_step_has_the_bits_of_an_uncompiled_one": ["test_correctness"],
    },
}

# torch's test: why it has no meaning for our optimizers, or what is refused instead.
NO_MEANING = {
    "test_optim_infos_do_not_specify_global_cliquey_kwargs": (
        "it checks torch's own list of settings; ours have no foreach, fused or differentiable"
    ),
    "test_forloop_goes_right_direction_multigpu": (
        "parameters on two devices are two buckets, as those of two dtypes are; it needs two GPUs to be run"
    ),
    "test_rosenbrock_sparse": (
        "sparse gradients are refused by name: x, z and p move wherever the gradient is zero, too, so that a sparse "
        "update would be another algorithm"
    ),
    "test_complex": "complex parameters are refused by name; torch.view_as_real gives a parameter that is served",
    "test_complex_2d": "complex parameters are refused by name",
    "test_load_nontensor_step": "the saved step is a plain number, and never was a tensor",
    "test_adamw_serialization": (
        "Adam and AdamW of torch read each other's states; ours refuse another optimizer's, because the tensors differ"
    ),
    "test_second_order_optims_return_consistent_types": "the closure is called once, and its result returned",
    "TestDifferentiableOptimizer": (
        "a step is one fused kernel that works in place and records no graph; ours have no option differentiable"
    ),
}


def test_every_torch_test_it_names_is_passed_or_has_a_reason() -> None:
    named = {rule.test_name for info in database().optim_db for rule in info.decorators if hasattr(rule, "test_name")}
    named.discard(None)  # a rule for a whole class
    held = {theirs for ours in HELD.values() for tests in ours.values() for theirs in tests}
    assert len(named) > 15
    assert named <= held | NO_MEANING.keys()
    assert not held & NO_MEANING.keys()


def test_the_tests_that_stand_for_those_of_torch_exist() -> None:
    for file, ours in HELD.items():
        found = re.findall(r"^def (test_\w+)\(", (TESTS / file).read_text(), re.MULTILINE)
        assert set(ours) <= set(found), file
