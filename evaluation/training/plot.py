"""The loss curves as a picture."""

from pathlib import Path

from evaluation.training.parity import ParityRecord


def plot(record: ParityRecord, file: Path) -> None:
    """A panel for each dropout: every run's curve, after's dashed, and around before's mean what is allowed."""
    from matplotlib.figure import Figure  # slow to import

    dropouts = sorted({run.config.dropout for run in record.runs})
    results = {result.dropout: result for result in record.results}
    figure = Figure(figsize=(6 * len(dropouts), 4), layout="constrained")
    panels = figure.subplots(1, len(dropouts), squeeze=False)[0]
    for panel, dropout in zip(panels, dropouts, strict=True):
        runs = [run for run in record.runs if run.config.dropout == dropout]
        for run in runs:
            colour, style = ("tab:blue", "-") if run.role == "before" else ("tab:orange", "--")
            label = None if run.config.seed else run.role
            panel.plot(_steps(run.config.steps, run.windows), run.windows, style, color=colour, alpha=0.7, label=label)
        windows = results[dropout].windows if dropout in results else []
        if windows:
            low, high = ([w.before + sign * w.allowed for w in windows] for sign in (-1, 1))
            steps = _steps(runs[0].config.steps, windows)
            panel.fill_between(steps, low, high, color="tab:blue", alpha=0.15, label="allowed for after's mean")
        panel.set(title=f"dropout {dropout:g}", xlabel="step", ylabel="loss", yscale="log")
        panel.legend()
    figure.savefig(file, dpi=120)


def _steps(steps: int, windows: list) -> list[float]:
    """The middle of each window."""
    return [(i + 0.5) * steps / len(windows) for i in range(len(windows))]
