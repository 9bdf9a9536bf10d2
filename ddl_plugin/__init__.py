"""Distribution Distillation Loss for InsightFace-style face-recognition training."""

__version__ = "0.1.0"


def register() -> None:
    """Make `--loss ddl` known to InsightFace's MXNet trainers; see `ddl_plugin.host.join.register`."""
    from ddl_plugin.host.join import register

    register()
