"""A fine-tuning run: a trained model, a task and a method, handed to the training loop."""

import contextlib
import dataclasses
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fira_jax
from experiments.llama import checkpoints as trained
from experiments.llama import huggingface
from experiments.llama.adapt import adapt, freeze_rest, merge_adapters, needs_gradient
from experiments.llama.answers import answer_loss
from experiments.llama.generate import generate
from experiments.llama.model import Llama, LlamaConfig
from experiments.memory import GIB, Prediction
from experiments.text.answer_batches import AnswerRows, encode, fitting_length
from experiments.text.examples import Example, TaskData
from experiments.text.model_tokenizer import ModelTokenizer
from experiments.text.tasks import load_task
from experiments.training.checkpoint import Checkpoints
from experiments.training.finetune_config import FinetuneConfig, defaults, resolved
from experiments.training.folder import RunFolder
from experiments.training.layerwise_step import answer_parts, make_layerwise_update
from experiments.training.lock import held
from experiments.training.loop import Plan, Progress, Task, train
from experiments.training.optimizers import build_optimizer, learning_rate_schedule
from experiments.training.report import DivergedError
from experiments.training.scoring import Proportion, Scorer, spread
from experiments.training.step import TrainState, make_train_step, merge, split
from fira_jax.cost.liveness import peak
from fira_jax.cost.memory import device_bytes

LONGEST = 512  # tokens predicted in a row, unless --seq-len says otherwise
_GRADIENT_BATCHES = 4  # from which an adapter's start is taken


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run learns from, in tokens."""

    task: TaskData
    tokenizer: ModelTokenizer
    rows: AnswerRows
    seq_len: int
    steps: int


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tunes as ``config`` says, continuing whatever its folder holds.

    Returns:
        The contents of ``summary.json``, or ``{}`` if ``stop_after`` or ``memory`` came first.

    Raises:
        ValueError: If the folder holds a different run, or a setting or an example is impossible.
        InUseError: If another process works there.
    """
    source = trained.resolve(config.model)
    model_config = huggingface.load_config(source, **_numerics(config))
    inputs = load_inputs(config, source, model_config)
    if config.memory:
        graphdef, task = make_task(config, source, model_config, inputs)
        print(predict(task))
        return {}
    folder = RunFolder(config.directory)
    folder.create()
    with contextlib.ExitStack() as stack:
        still_ours = stack.enter_context(held(folder.path))
        checkpoints = stack.enter_context(closing(Checkpoints(folder.path / "checkpoints")))
        prints = {"task": inputs.task.fingerprint, "tokenizer": inputs.tokenizer.fingerprint}
        prints["weights"] = huggingface.fingerprint(source)
        settings = resolved(config, model_config, prints)
        folder.claim(settings, defaults(), lambda: (checkpoints.note() or {}).get("settings"))
        if (summary := folder.summary) is not None:
            print(f"{folder}: already finished, nothing to do")
            return summary
        graphdef, task = make_task(config, source, model_config, inputs)
        stack.enter_context(closing(task.data))
        needed = predict(task)
        print(
            f"an update takes about {needed.peak_bytes / GIB:.2f} GiB, of it weights "
            f"{needed.weight_bytes / GIB:.2f} and optimizer state {needed.state_bytes / GIB:.3f} "
            "(--memory shows the rest)"
        )
        stop = min(inputs.steps, config.stop_after or inputs.steps)
        plan = Plan(inputs.steps, stop, config.eval_every, config.checkpoint_every)
        task, last = _remembering_state(task)
        progress = train(task, plan, folder.path, checkpoints, still_ours, settings)
        if stop < inputs.steps:
            print(f"stopped after step {stop} of {inputs.steps}; without --stop-after it goes on")
            return {}
        state = last() or checkpoints.restore(task.abstract_state)[1]  # type: ignore[index]
        model = merge(graphdef, state.params, state.frozen)
        summary = summarize(config, inputs, progress, state, graphdef)
        merge_adapters(model)
        export = Path(folder.path) / "model"
        huggingface.save(model, export, **_special_ids(inputs.tokenizer))
        inputs.tokenizer.copy_files(export)
        folder.finish(summary)
    if summary["accuracy"] is not None:
        low, high = summary["accuracy_interval"]
        print(f"accuracy {summary['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    print(f"finished: held-out loss {summary['eval_loss']:.4f}; the model is in {export}")
    return summary


def load_inputs(config: FinetuneConfig, source: Path, model_config: LlamaConfig) -> Inputs:
    """The task's examples as rows of the model's tokens."""
    tokenizer = ModelTokenizer(source)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model "
            f"{model_config.vocab_size}"
        )
    task = load_task(config.task, tokenizer.render)
    if not task.train or not task.test:
        raise ValueError(
            f"{config.task}: no examples to {'test on' if task.train else 'learn from'}"
        )
    most = config.seq_len or LONGEST
    if most > model_config.max_sequence_length:
        if config.seq_len:
            raise ValueError(
                f"--seq-len {most} is above the model's context of "
                f"{model_config.max_sequence_length} tokens"
            )
        most = model_config.max_sequence_length
    texts, cut = encode(task.train, tokenizer, most)
    if cut:
        print(
            f"{cut} of {len(texts)} examples are longer than {most} tokens: they lose their start"
        )
    lengths = [len(text.ids) for text in texts]
    seq_len = most if config.pack else fitting_length(lengths, most)
    rows = AnswerRows(texts, seq_len, config.pack)
    if len(rows) < config.batch_size:
        raise ValueError(
            f"--batch-size {config.batch_size} is more than the {len(rows)} rows there are"
        )
    steps = config.steps or math.ceil(config.epochs * len(rows) / config.batch_size)
    print(
        f"{task.name}: {len(task.train)} examples to learn from in {len(rows)} rows of {seq_len} "
        f"tokens, {len(task.test)} held out; {steps} updates"
    )
    return Inputs(task, tokenizer, rows, seq_len, max(1, steps))


def make_task(
    config: FinetuneConfig, source: Path, model_config: LlamaConfig, inputs: Inputs
) -> tuple[nnx.GraphDef, Task]:
    """The model's structure while it is trained, and what the loop needs."""
    settings = config.as_pretraining(inputs.steps)
    schedule = learning_rate_schedule(settings)
    optimizer = _optimizer(config, settings, schedule)
    batches = iter(inputs.rows.batches(config.batch_size, config.seed))
    example = _on_device(inputs.rows.take(np.arange(config.batch_size)))

    def prepare(model: Llama, gradients: Any) -> None:
        if config.adapter != "none":
            adapt(model, config.adapter, config.rank, config.alpha, config.seed, gradients)
        elif config.train == "matrices":
            freeze_rest(model)

    def drawn() -> Llama:
        model = Llama(model_config, rngs=nnx.Rngs(0))
        prepare(model, nnx.to_pure_dict(nnx.state(model)))  # of the shapes that gradients have
        return model

    abstract = nnx.eval_shape(drawn)
    graphdef = nnx.graphdef(abstract)
    if config.layerwise:
        init, train_step = make_layerwise_update(
            answer_parts(model_config), optimizer, schedule, config.seed, config.accumulate,
            config.grad_clip,
        )  # fmt: skip
    else:
        init = optimizer.init
        train_step = make_train_step(
            graphdef, optimizer, schedule, config.accumulate, loss=answer_loss
        )

    def state_of(params: Any, frozen: Any) -> TrainState:
        return TrainState(jnp.int32(0), params, init(params), frozen)

    def begin(formats: Any) -> TrainState:
        model = huggingface.load(source, **_numerics(config))
        gradients = _gradients(model, inputs, config) if needs_gradient(config.adapter) else None
        prepare(model, gradients)
        state = jax.jit(state_of, donate_argnums=(0, 1))(*split(model))
        return state if formats is None else jax.device_put(state, formats, donate=True)

    abstract_state = jax.eval_shape(state_of, *split(abstract))
    print(fira_jax.describe(optimizer, abstract_state.params))
    held_out = spread(inputs.task.test, config.eval_examples)
    scorer = Scorer(
        graphdef, held_out, inputs.tokenizer, inputs.seq_len, config.batch_size // config.accumulate
    )

    def next_batch(state: TrainState) -> tuple[Any, int]:  # noqa: ARG001
        return _on_device(next(batches)), config.batch_size * inputs.seq_len

    def evaluate(state: TrainState) -> dict[str, Any]:
        return scorer(state.params, state.frozen).as_values()

    return graphdef, Task(
        init_state=lambda: state_of(*split(drawn())),
        abstract_state=abstract_state,
        train_step=train_step,
        next_batch=next_batch,
        data=batches,
        evaluate=evaluate,
        example=example,
        begin=begin,
    )


def predict(task: Task) -> Prediction:
    """What an update takes, weights and optimizer state exactly, the rest by tracing it."""
    state = task.abstract_state
    needed = peak(jax.make_jaxpr(task.train_step)(state, task.example))
    return Prediction(
        weight_bytes=device_bytes(state.params) + device_bytes(state.frozen),
        state_bytes=device_bytes(state.opt_state),
        gathered_bytes=0,
        working_bytes=needed.size,
        arrays=needed.arrays,
        gradient_bytes=device_bytes(state.params),
    )


def summarize(
    config: FinetuneConfig,
    inputs: Inputs,
    progress: Progress,
    state: TrainState,
    graphdef: nnx.GraphDef,
) -> dict[str, Any]:
    """What a finished run says of itself, tested on the held-out examples.

    Raises:
        DivergedError: If it ended with a loss that is NaN or infinite.
    """
    test = spread(inputs.task.test, config.test_examples)
    rows = config.batch_size // config.accumulate
    score = Scorer(graphdef, test, inputs.tokenizer, inputs.seq_len, rows)(
        state.params, state.frozen
    )
    if not math.isfinite(score.loss):
        raise DivergedError("the run ended with a held-out loss that is NaN or infinite")
    summary: dict[str, Any] = {"steps": progress.step, "eval_loss": score.loss}
    for name, found in (("accuracy", score.accuracy), ("accuracy_by_length", score.by_length)):
        summary[name] = found.value if found else None
        summary[f"{name}_interval"] = found.interval if found else None
    if config.generate:
        found = generated(merge(graphdef, state.params, state.frozen), test, inputs.tokenizer, rows)
        summary["accuracy_generated"], summary["accuracy_generated_interval"] = (
            found.value,
            found.interval,
        )
    if config.adapter == "sora":
        named = jax.tree.leaves_with_path(state.params)
        gates = np.concatenate([np.ravel(x) for path, x in named if path[-1].key == "gate"])
        summary["open_gates"] = float(np.mean(gates != 0))
    return summary | {
        "test_examples": len(test),
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "trained_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "optimizer_state_bytes": device_bytes(state.opt_state),
    }


def generated(
    model: Llama, examples: list[Example], tokenizer: ModelTokenizer, batch_size: int
) -> Proportion:
    """How often the model, left to write greedily, writes the right answer and ends."""
    answers = [example.parts[-1].text for example in examples]
    right = 0
    for start in range(0, len(examples), batch_size):
        some = slice(start, start + batch_size)
        prompts = [
            tokenizer.bos + ids for ids in tokenizer.encode([e.prompt for e in examples[some]])
        ]
        longest = max(len(ids) for ids in tokenizer.encode(answers[some])) + 1
        written = generate(model, prompts, longest, tokenizer.eos_id)
        right += sum(
            tokenizer.decode(ids).strip() == answer.strip()
            for ids, answer in zip(written, answers[some], strict=True)
        )
    return Proportion(right, len(examples))


def _optimizer(config: FinetuneConfig, settings: Any, schedule: Any) -> Any:
    if config.adapter == "lora_pro":
        scaling = config.alpha / config.rank
        return fira_jax.lora_pro(schedule, scaling, config.weight_decay, moments="factors")
    optimizer = build_optimizer(settings, schedule)
    if config.adapter == "sora":
        shrink = fira_jax.transforms.proximal_l1(schedule, config.gate_penalty)
        return optax.chain(optimizer, shrink)
    return optimizer


def _gradients(model: Llama, inputs: Inputs, config: FinetuneConfig) -> Any:
    """Mean gradient of the weights over the first batches of another order."""
    graphdef, params = nnx.split(model, nnx.Param)[0], nnx.to_pure_dict(nnx.state(model))
    of_batch = jax.jit(jax.grad(lambda p, batch: answer_loss(nnx.merge(graphdef, p), batch)))
    batches = iter(inputs.rows.batches(config.batch_size, config.seed + 1))
    total = of_batch(params, _on_device(next(batches)))
    for _ in range(_GRADIENT_BATCHES - 1):
        total = jax.tree.map(jnp.add, total, of_batch(params, _on_device(next(batches))))
    return jax.tree.map(lambda x: x / _GRADIENT_BATCHES, total)


def _remembering_state(task: Task) -> tuple[Task, Any]:
    """The task, and a function for the state that its last update made."""
    kept: list[TrainState] = []

    def evaluate(state: TrainState) -> dict[str, Any]:
        kept[:] = [state]
        return task.evaluate(state)

    return dataclasses.replace(task, evaluate=evaluate), lambda: kept[0] if kept else None


def _numerics(config: FinetuneConfig) -> dict[str, Any]:
    return {"dtype": config.dtype, "param_dtype": config.dtype, "remat": config.remat}


def _special_ids(tokenizer: ModelTokenizer) -> dict[str, int]:
    return {"eos_token_id": tokenizer.eos_id} | (
        {"bos_token_id": tokenizer.bos[0]} if tokenizer.bos else {}
    )


def _on_device(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in batch.items()}
