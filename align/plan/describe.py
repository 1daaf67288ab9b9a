"""--plan: what a run would do and take, before it does it.

    train.py --plan --config falcon-11b                        on this machine
    train.py --plan --config falcon-11b --plan.gpus 8          on eight GPUs of 80 GiB, from anywhere

Without --data every row is taken to be as long as data.max_length allows, half of it the prompt.
"""

from align.files import to_toml
from align.kernels import evidence, resolve_impls
from align.models import DecoderConfig
from align.output import check_output
from align.parallel import World, compute_dtype
from align.plan.mends import mends
from align.plan.outlook import GIB, Outlook, Part, look
from align.sections import Config


def describe_length(max_length: int, architecture: DecoderConfig) -> str:
    return f"length: at most {max_length} tokens of prompt + response; the model's context is {architecture.context_length}"


def describe_plan(config: Config, world: World) -> str:
    """What --plan prints. Raises UserError for what a run would refuse before it starts."""
    check_output(config)
    outlook = look(config, world)
    trained = f"; {outlook.setup.trained:,} of adapters are trained" if outlook.setup.frozen else ""
    lines = [
        f"model: {family(outlook.model)} of {outlook.setup.base:,} parameters, from {outlook.source}{trained}",
        *(line for part in outlook.parts for line in data_lines(part)),
        describe_length(config.data.max_length, outlook.model),
        f"machine: {outlook.machine.text}",
        *memory_lines(outlook),
        flops_line(config, outlook),
        kernels_line(config, world),
        f"output: {config.output}",
    ]
    return "\n".join([*lines, "", to_toml(config.to_dict())])


def family(model: DecoderConfig) -> str:
    return type(model).__name__.removesuffix("Config")


def data_lines(part: Part) -> list[str]:
    config, data, train = part.config, part.data, part.config.train
    own = not config.source
    each = f"{train.batch_size} prompts each: {part.setup.ranks} ranks x {part.micro_batches} micro-batches of at "
    each += f"most {train.micro_batch_tokens:,} tokens"
    if own and data is not None:
        share = data.steps * train.batch_size / data.n_train
        return [f"data: {found(part)}", f"steps: {data.steps}, {each}; {share:.2f} epochs"]
    if own:
        return [f"data: {found(part)}", f"steps: {train.steps or 'as many as the data has'}, {each}"]
    loss = f"{config.sources[config.source].weight:g} x {config.loss.name}"
    return [f"sources.{config.source}: {found(part)}", f"  in every step {loss} on {each}"]


def found(part: Part) -> str:
    if part.data is None:
        return f"none given; every row is taken to be {part.config.data.max_length} tokens, half of them the prompt"
    n, k = part.data.n_train, len(part.data.groups[0].response_ids)
    tokens = part.data.n_tokens(range(n))
    return f"{n:,} prompts of {k} response{'s' * (k > 1)}, {tokens:,} tokens, in {part.config.data.path}"


def memory_lines(outlook: Outlook) -> list[str]:
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in outlook.held.items() if size)
    lines = [f"memory: {outlook.held.total / GIB:.2f} GiB a rank at its fullest: {kinds}"]
    if outlook.fits:
        return [*lines, f"it fits: a micro-batch may have {outlook.largest:,} tokens"]
    ways = mends(outlook.setup, outlook.fullest, outlook.machine.memory, outlook.accumulates)
    return [*lines, f"it does not fit; it would with {', or with '.join(ways) or 'more than one change'}"]


def flops_line(config: Config, outlook: Outlook) -> str:
    text = f"a step: {outlook.needed:.3g} FLOPs for the method, {outlook.run:.3g} as it is run"
    if outlook.seconds is None or config.plan is None:
        return text
    text += f"; {outlook.seconds:.3g} s at an MFU of {config.plan.mfu:.0%} (--plan.mfu)"
    if (data := outlook.parts[0].data) is None:
        return text
    return f"{text}, {outlook.seconds * data.steps / 3600:.3g} hours for all {data.steps} steps"


def kernels_line(config: Config, world: World) -> str:
    dtype = compute_dtype(config.parallel.dtype, world.device)
    logp, pointwise = resolve_impls(config.model.logp_impl, config.model.pointwise_impl, dtype, world.device)
    reason = evidence.why_not("logp", world.device) if config.model.logp_impl == "auto" else ""
    return f"kernels: {logp} log-probs{reason and f' (auto: {reason})'}; {pointwise} pointwise operations"
