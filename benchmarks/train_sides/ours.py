"""Our side: `pico.train.loop.train` itself, on rows in the layout of data/tokens."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from train_sides.shapes import BETAS, CLIP, DECAY, LR, Setting, Shape, now


def ours(setting: Setting) -> Iterator[float]:
    """Steps of pico.train. It asks before every step whether to stop; there it waits for the next one to be wanted."""
    from pico.train.loop import train
    from pico.train.spec import run_identity

    # Checkpoints are written at steps 0, 1, 2, 4, ...: the steps that are timed lie between two of them.
    first = 1 << max(3, setting.steps.bit_length())
    asked, answered = threading.Semaphore(0), threading.Semaphore(0)
    seconds: list[float] = []
    ended: list[BaseException] = []
    step, started = 0, 0.0

    def stop() -> bool:
        nonlocal step, started
        ended_at = now(setting)
        if step > first:
            seconds.append(ended_at - started)
            answered.release()
        if step >= first:
            if step == first:  # a checkpoint that is written beside training would be timed, too
                while not (work / "model" / "checkpoints" / f"step_{first:08d}" / "manifest.json").exists():
                    time.sleep(0.01)
            asked.acquire()
            started = now(setting)
        step += 1
        return step > first + setting.steps

    with tempfile.TemporaryDirectory() as folder:
        tokens, work = _tokens(Path(folder, "tokens"), setting.shape), Path(folder, "work")
        work.mkdir()
        spec = _spec(setting, 2 * first)

        def body() -> None:
            from pico.train.parallel import World

            try:
                train(
                    spec,
                    tokens,
                    work,
                    run_identity(spec, tokens),
                    world=World(device=torch.device(setting.device)),
                    stop=stop,
                )
            except BaseException as error:
                ended.append(error)
                answered.release()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        for _ in range(setting.steps):
            asked.release()
            answered.acquire()
            if ended:
                raise ended[0]
            yield seconds[-1]
        asked.release()
        thread.join()


def _spec(setting: Setting, steps: int) -> Any:
    from pico.config import Checkpoints, LearningDynamics, Schedule, Training
    from pico.model import DecoderConfig
    from pico.optimizers import AdamW
    from pico.train.spec import RunSpec

    shape = setting.shape
    return RunSpec(
        model=shape.name,
        seed=0,
        decoder=DecoderConfig(
            shape.d_model,
            shape.n_layers,
            shape.vocab_size,
            shape.seq_len,
            shape.n_heads,
            shape.n_kv_heads,
            shape.hidden,
        ),
        training=Training(
            steps=steps,
            batch_size=shape.batch,
            micro_batch_size=shape.batch,
            workers=1,
            threads_per_worker=setting.threads,
            device=setting.device,
            precision="bf16" if setting.cuda else "fp32",
            compile=setting.cuda,
            gradient_clip=CLIP,
            eval_every=steps,
        ),
        optimizer=AdamW(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=1e-8, weight_decay=DECAY),
        schedule=Schedule(kind="constant", warmup_steps=1, final_fraction=1.0),
        checkpoints=Checkpoints(every=1 << 30, rescue_seconds=1e9),
        learning_dynamics=LearningDynamics(layers=[], batch_size=8, positions=1),
    )


def _tokens(folder: Path, shape: Shape) -> Path:
    """Random rows in the layout of data/tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pico.files import write_json

    def write(path: Path, rows: int, **columns: Any) -> None:
        path.parent.mkdir(parents=True)
        ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1), generator=torch.Generator().manual_seed(0))
        lists = pa.array(ids.tolist(), type=pa.list_(pa.int32()))
        pq.write_table(
            pa.table({"input_ids": lists, **{name: [value] * rows for name, value in columns.items()}}), path
        )

    write(folder / "train" / "train-00000-of-00001.parquet", 4 * shape.batch)
    write(folder / "heldout" / "text.parquet", 1, n_bytes=shape.seq_len)
    write(folder / "tinsy" / "text.parquet", 1, n_bytes=shape.seq_len)
    write_json(folder / "provenance.json", {})
    return folder
