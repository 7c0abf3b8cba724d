"""The buckets of DDP, fixed before the first step, so that a resumed run adds in the same order.

DDP packs gradients into buckets and sums a bucket with one all-reduce. In which order the ranks'
values are added depends on the element's place in its bucket, and with three or more ranks the
order decides how the sum is rounded. By default a new DDP object begins with one bucket and packs
its gradients again after the first step, in the order in which they became ready. A resumed run
would thus round one step otherwise than the run that it continues.
"""

from typing import Any, cast

from torch.nn.parallel import DistributedDataParallel


def fix_buckets(model: DistributedDataParallel) -> None:
    """Pack the gradients of all steps, the first included, into the same buckets.

    They have DDP's usual sizes. The last parameters come first: their gradients are ready first, so
    they are exchanged while the others are computed. A collective call, before the first step.
    DDP's experimental modes are left as they are.
    """
    ddp = cast(Any, model)
    if ddp.find_unused_parameters and not ddp.static_graph:
        return  # its buckets never change
    if _is_experimental(ddp):
        return
    # DDP's unpickling makes a new reducer in the same way. The old one has buckets as large as the
    # model: it goes first.
    ddp.reducer._remove_autograd_hooks()
    ddp.reducer = ddp.logger = None
    parameters, sparse = ddp._build_params_for_reducer()
    parameters.reverse()
    sparse.reverse()
    names = ddp._build_debug_param_to_name_mapping(parameters)
    ddp._ddp_init_helper(parameters, sparse, names, ddp.static_graph)
    if ddp.static_graph:
        ddp.reducer._set_static_graph()
        ddp.logger._set_static_graph()
        ddp._static_graph_delay_allreduce_enqueued = False
    if getattr(ddp, "_require_manual_backward_finalization", False):  # since PyTorch 2.15
        ddp.require_manual_backward_finalization = True
    hooks, ddp._comm_hooks = ddp._comm_hooks, []
    for hook, state in hooks:
        ddp.register_comm_hook(state, hook)
    # As if all gradients had become ready in the order of `parameters`. DDP does it once only.
    ddp.reducer._push_all_rebuilt_params()
    ddp.reducer._rebuild_buckets()
    ddp._has_rebuilt_buckets = True


def _is_experimental(ddp: Any) -> bool:
    """Whether gradients are reduced by what a new reducer would not know.

    All are experimental or internal to PyTorch: all-reduces of its own choice, compiled autograd,
    native mixed precision, optimizers in the backward pass, and communication hooks in C++.
    """
    return (
        ddp._delay_all_reduce_all_params
        or ddp._use_python_reducer
        or ddp.mixed_precision is not None
        or any(hasattr(parameter, "_in_backward_optimizers") for parameter in ddp.parameters())
        or ddp._get_ddp_logging_data().get("comm_hook", "").startswith("BuiltinCommHookType")
    )
