"""``logger: {mlflow: {use: mlflow, experiment: moe}}``: MLflow."""

from moekit.spec.fields import option
from moekit.spec.kinds import LoggerSpec


class MLflow(LoggerSpec):
    """Logs to MLflow. A run that is resumed continues the same run there."""

    experiment: str = option("moekit", "name of the experiment")
    uri: str = option("", "the tracking server (default: MLFLOW_TRACKING_URI, else a file in the run's folder)")
