"""A run's folder and its files; `FILES` names each of them."""

FILES: dict[str, tuple[str, str]] = {
    "config.toml": ("fedsim/app/rundir/run_dir.py", "every setting, resolved"),
    "manifest.json": (
        "fedsim/app/rundir/run_dir.py",
        "command, versions, fingerprint of the data, plan",
    ),
    "spec.json": (
        "fedsim/app/rundir/run_dir.py",
        "words, labels, tags and sizes, in the order of their ids",
    ),
    "devices.npz": ("fedsim/app/rundir/run_dir.py", "device ids and their public activity"),
    "lock": ("fedsim/app/rundir/run_dir.py", "held by the process that works on the run"),
    "rounds.jsonl": (
        "fedsim/app/rundir/run_dir.py",
        "a row a round: cohort, losses, metrics, times",
    ),
    "periods.jsonl": (
        "fedsim/app/server/rounds.py",
        "a row for each pair of a period's model and a test period",
    ),
    "releases.jsonl": (
        "fedsim/app/server/rounds.py",
        "a row a period: flips against the release before",
    ),
    "checkpoints/round-*.npz": ("fedsim/app/rundir/run_dir.py", "the server's state after a round"),
    "checkpoints/release-*.npz": ("fedsim/app/rundir/releases.py", "the last model of a period"),
    "privacy.jsonl": ("fedsim/privacy/ledger.py", "the ledger: a row a release, written before it"),
    "privacy/*.npy": (
        "fedsim/privacy/ledger.py",
        "each device's group of events, for rows of the ledger",
    ),
    "privacy.md": ("fedsim/app/budget/statement.py", "the privacy statement, for people"),
    "privacy.json": ("fedsim/app/budget/statement.py", "the privacy statement, for programs"),
    "canaries.jsonl": (
        "fedsim/app/experiment/planting.py",
        "the canaries: secrets, holders, copies",
    ),
    "audit.jsonl": ("fedsim/app/rundir/audit_file.py", "a row for each attack, canary and bound"),
    "shadows/*": ("fedsim/app/audits/membership/shadows.py", "run folders of shadow models"),
    "summary.json": ("fedsim/app/rundir/run_dir.py", "the results; only a finished run has it"),
    "metrics.json": ("fedsim/app/server/monitoring.py", "how the run is doing (place.metrics)"),
    "metrics.prom": ("fedsim/app/server/monitoring.py", "the same for Prometheus"),
    "log.jsonl": ("fedsim/app/server/monitoring.py", "what our own code logged (place.metrics)"),
    "tensorboard/*": ("fedsim/app/server/trackers.py", "figures by round (place.trackers)"),
    "model/model.npz": ("fedsim/app/rundir/export.py", "the model's parameters, by fedsim export"),
    "model/model.json": (
        "fedsim/app/rundir/export.py",
        "the model's names and settings, by fedsim export",
    ),
    "report.html": ("fedsim/app/report/write.py", "the page about the run, by fedsim report"),
    "figures/*": ("fedsim/app/report/write.py", "the page's figures as SVG, PNG and PDF"),
    "*.part": (
        "fedsim/app/rundir/files.py",
        "a file that was being written when its process ended",
    ),
}
"""Pattern of each file in a run's folder -> the module that writes it, and its content."""
