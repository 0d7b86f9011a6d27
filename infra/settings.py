"""The base class of all groups of settings, and the settings of the machines on which jobs run."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from infra.storage.uri import absolute


def absolute_location(location: str) -> str:
    """Make the location of a file, folder or model absolute, because jobs and MLflow run in other folders than the command.

    Args:
        location: local path, file:// or https:// URI, or URI in a bucket, name of a model in MLflow's registry
            (models:/NAME@ALIAS), or "".

    Returns:
        An absolute path or a URI. The name of a model in the registry and "" are returned unchanged.

    Raises:
        ValueError: if the path is relative and this process is a Ray job with a working directory. Ray runs such a job in a
            temporary copy of the project folder, and deletes the copy and all files written there.
    """
    if not location or location.startswith("models:"):
        return location
    if "runtime_resources" in Path.cwd().parts and "://" not in location and not Path(location).is_absolute():
        raise ValueError(
            "it is relative, and this job runs in Ray's temporary copy of the project: give an absolute path that every node "
            "sees, or an s3:// one"
        )
    return absolute(location)


Location = Annotated[str, AfterValidator(absolute_location), WithJsonSchema({"type": "string", "format": "path"})]
"""Type of settings that hold the location of a file, folder or model. Relative paths are made absolute."""


def check_webhook_url(url: str) -> str:
    """Return the URL of a webhook unchanged.

    If it is not an http(s) URL with a host, raise a ValueError whose text does not contain it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # its text may have a part of the URL
        usable = False
    if not usable:
        raise ValueError("it must begin with https:// (or http://) and a host name")
    return url


class Section(BaseModel):
    """The base class of all sections, which are groups of related settings.

    Unknown keys are errors, and so are infinite numbers and NaN. Default values are validated too. Values can't be changed after
    creation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_text_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """Replace an empty text by None if the setting may be None, and [""] by an empty list. pydantic calls this.

        Args:
            value: raw value of a setting, from a YAML file or the command line.
            info: pydantic's object with the name of the setting.

        Returns:
            The new value; any other value unchanged.
        """
        if value == [""]:  # pydantic-settings makes this of an empty list
            return []
        field = cls.model_fields[info.field_name or ""]
        return None if value == "" and type(None) in get_args(field.annotation) else value


class ClusterSettings(Section):
    """The settings that say where jobs run: on which Ray cluster, and on which of its nodes.

    The description of each field says what it means.
    """

    address: str | None = Field(
        None, description="address of a Ray cluster to join; empty: that in RAY_ADDRESS, else Ray is started on this machine"
    )
    num_cpus: PositiveInt | None = Field(
        None,
        description="CPUs of a Ray started on this machine, or processes of the local executor; empty: all CPUs of the machine",
    )
    autoscaling: bool | None = Field(
        None,
        description="whether the cluster adds nodes when work needs them; empty: true on a head that was started by `ray up`, or "
        "by KubeRay with enableInTreeAutoscaling",
    )
    object_store_mb: int = Field(512, ge=100, description="size of the object store of a Ray started on this machine, in MB")
    data_nodes: str | None = Field(
        None,
        description="Ray labels (pool=cpu) of the nodes for proposals, training crops and evaluation on CPUs; empty: any node",
    )
    training_nodes: str | None = Field(
        None, description="Ray labels (pool=gpu) of the nodes for training workers; empty: any node"
    )

    @field_validator("data_nodes", "training_nodes")
    @classmethod
    def _check_labels(cls, text: str | None) -> str | None:
        """Check that a setting consists of node labels, such as "pool=gpu,zone=a". pydantic calls this.

        Args:
            text: value of the setting `data_nodes` or `training_nodes`; None or "" for no labels.

        Returns:
            The text, unchanged.

        Raises:
            ValueError: if the text does not consist of key=value pairs separated by commas.
        """
        for pair in text.split(",") if text else ():
            if not re.fullmatch(r"\s*[\w./-]+\s*=\s*[\w.-]+\s*", pair):
                raise ValueError("must be labels, key=value, separated by commas: pool=cpu")
        return text

    def selector(self, nodes: Literal["data_nodes", "training_nodes"]) -> dict[str, str]:
        """Return the Ray labels that a node must have to run a certain kind of job.

        Args:
            nodes: name of the setting that holds the labels: "training_nodes" for training and other work on GPUs,
                "data_nodes" for all other work.

        Returns:
            Label values by label key; {} if jobs may run on any node.
        """
        return dict(re.findall(r"([\w./-]+)\s*=\s*([\w.-]+)", getattr(self, nodes) or ""))


class NotifySettings(Section):
    """Messages to a chat program (webhook), the age from which data are stale, and where the last run's metrics go.

    This is the section `notify` of the settings files. Each field is explained by its description.
    """

    url: SecretStr | None = Field(
        None,
        description='webhook that gets messages about promotions, refusals, failures and stale data, as Slack\'s {"text": …}; a '
        "secret: write ${NAME} in a file, and never give it on the command line; empty: DECONVNET_NOTIFY_URL, else no messages",
    )
    stale_days: PositiveInt | None = Field(
        30, description="days without a new or changed image after which retrain.py reports stale data; empty: never"
    )

    metrics_to: Location | None = Field(
        None,
        description="where retrain.py writes the results of the run for Prometheus: local file (…/deconvnet.prom, for "
        "node_exporter's textfile collector), or http(s) URL of a Pushgateway; empty: nowhere",
    )

    @field_validator("metrics_to")
    @classmethod
    def _check_metrics_to(cls, to: str | None) -> str | None:
        """Return the setting `metrics_to` unchanged. Raise ValueError if nothing would read it. pydantic calls this."""
        if to is not None and not to.startswith(("http://", "https://")) and ("://" in to or not to.endswith(".prom")):
            raise ValueError("it must be a local file whose name ends with .prom, or the http(s) URL of a Pushgateway")
        return to

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr | None) -> SecretStr | None:
        """Return the setting `url` unchanged. pydantic calls this.

        If it is not the URL of a webhook, raise a ValueError whose text does not contain it.
        """
        if url is not None:
            check_webhook_url(url.get_secret_value())
        return url
