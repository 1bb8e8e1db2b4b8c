"""The loss curves of both trees as a picture."""

from pathlib import Path

from evaluation.training.parity import ParityRecord


def plot(record: ParityRecord, file: Path) -> None:
    """A panel for each dropout: every run's curve, after's dashed, and around before's mean what is allowed."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6 * len(record.results), 4), layout="constrained")
    panels = figure.subplots(1, len(record.results), squeeze=False)[0]
    for panel, result in zip(panels, record.results, strict=True):
        for run in record.runs:
            if run.config.dropout == result.dropout:
                colour, style = ("tab:blue", "-") if run.role == "before" else ("tab:orange", "--")
                steps = [(i + 0.5) * run.config.steps / len(run.windows) for i in range(len(run.windows))]
                label = None if run.config.seed else run.role
                panel.plot(steps, run.windows, style, color=colour, alpha=0.7, label=label)
        low, high = ([w.before + sign * w.allowed for w in result.windows] for sign in (-1, 1))
        if result.windows:
            panel.fill_between(steps, low, high, color="tab:blue", alpha=0.15, label="allowed for after's mean")
        panel.set(title=f"dropout {result.dropout:g}", xlabel="step", ylabel="loss", yscale="log")
        panel.legend()
    figure.savefig(file, dpi=120)
