"""Serve a registered model over HTTP with Ray Serve: send an image, get its mask.

  python workflows/serve.py --workspace RUN            serve the champion in the MLflow store of RUN
  … --model models:/NAME@ALIAS                         serve another model (or models:/NAME/VERSION)
  … --port 8080 --replicas 4 --cpus_per_replica 2      choose the port, and the number and size of the processes
  … --canary 0.1                                       let the challenger answer a tenth of the requests
  … --shadow                                           let the challenger predict too, and log only how its masks differ

The champion is the version of the registered model that is in use. If the alias moves to another version (retrain.py,
promote.py), the server loads that version, switches to it without refusing a request, and unloads the earlier one. The
challenger (the alias, or the version that --challenger names) is a version on trial, which may replace the champion later.
To call the server:

  curl --data-binary @photo.jpg http://127.0.0.1:8000 -o mask.png                  get a paletted PNG of class ids
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000?overlay=1' -o overlay.jpg   get the image with its mask drawn over it

Open the address in a browser to try the model on a page. The headers of a reply name the version that has answered (X-Model),
the classes found (X-Classes) and the time spent on each part (Server-Timing). If an image can't be used, the reply is an
error message in JSON. /healthz is for health checks, /version shows which version answers, with statistics of its answers,
and /metrics is for Prometheus.

Slow or huge uploads are refused (408, 413). If too many requests wait, further ones are refused (429, with Retry-After).
The server has no login. By default it can be reached from this machine only; --host 0.0.0.0 opens it to other machines.

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 2 an error in the settings, or there is no such model.
"""

import logging

from workflows import cli
from workflows.settings import CONFIGS, ServeSettings

logger = logging.getLogger("workflows.serve")


def main(argv: list[str] | None = None) -> None:
    """Run serve.py with the given command-line arguments. The function blocks until the server is stopped.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings have an error, or the model can't be served.
    """
    settings, _ = cli.SettingsParser(__doc__ or "", ServeSettings, CONFIGS / "serve.yaml").parse_settings(argv)
    from deconvnet.serving.ray_serve import check_installed

    check_installed()
    from deconvnet.serving import server
    from deconvnet.serving.follow import check_challenger
    from deconvnet.serving.limits import Limits
    from deconvnet.serving.replica import ServedModel
    from deconvnet.tracking import registry
    from deconvnet.tracking.store import model_store

    server.check_port_free(settings.host, settings.port)
    store = model_store(settings.workspace, settings.tracking.uri)
    version = registry.find(settings.model, store, "model")
    if settings.canary or settings.shadow:
        check_challenger(version, settings.model, settings.challenger, store)
    elif settings.challenger:
        logger.warning(f"challenger {settings.challenger} has no effect without --canary SHARE or --shadow")
    model = ServedModel(
        version,
        store,
        settings.replicas,
        settings.cpus_per_replica,
        settings.gpus_per_replica,
        settings.max_pixels,
    )
    limits = Limits(
        settings.max_megabytes * 2**20,
        settings.max_total_megabytes * 2**20,
        settings.max_waiting,
        settings.read_timeout,
        settings.request_timeout,
    )
    follow = server.FollowOptions(settings.model, settings.challenger, settings.canary, settings.shadow, settings.poll_seconds)
    try:
        server.serve(model, follow, limits, settings.host, settings.port, settings.cluster)
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
