"""Settings for choosing the images to label next."""

from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from infra.settings import Location, Section


class RankSettings(Section):
    """Which of the predicted images are proposed for labelling."""

    rank: NonNegativeInt = Field(
        0, description="number of images to choose for labelling next, written to output/ranking; 0: none are chosen"
    )
    rank_labelled: Location | None = Field(
        None,
        description="data set in VOC's layout, or folder of images, already labelled: these and near-duplicates are not chosen",
    )
    rank_class_share: float | None = Field(
        None, gt=0, le=1, description="largest share of the chosen images that are of one class; empty: twice an equal share"
    )
    rank_min_distance: int = Field(
        11,
        ge=0,
        le=64,
        description="images are near-duplicates if their perceptual hashes (64 bits) differ in fewer bits than this; "
        "near-duplicates of chosen or labelled images are not chosen; 0: near-duplicates are chosen, too",
    )

    @model_validator(mode="after")
    def _check_rank_is_given(self) -> Self:
        """Raise ValueError if another setting of this section is given, but `rank` is 0."""
        given = [name for name in RankSettings.model_fields if name != "rank" and name in self.model_fields_set]
        if given and not self.rank:
            raise ValueError(
                f"{given[0]} has no effect without --rank: give --rank the number of images to choose, or leave it out"
            )
        return self
