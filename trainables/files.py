"""The names of the files that trials leave behind. This module imports nothing, so that reading a finished study needs
no torch."""

CHECKPOINT_MARK = "training.json"  # written last: a checkpoint folder without it is incomplete
WEIGHTS = "model.safetensors"
TEST_PREDICTIONS = "test.parquet"
# Files of the pieces of the teacher's logits, besides the predictions for the test images.
VIEW_LOGITS, UNLABELLED_LOGITS, VALIDATION_PREDICTIONS = "views.npy", "unlabelled.npy", "validation.npy"
VIEW_FEATURES, UNLABELLED_FEATURES = "features.npy", "unlabelled-features.npy"
RESULT_FILES = (WEIGHTS, TEST_PREDICTIONS)
LOGITS_FILES = (VIEW_LOGITS, UNLABELLED_LOGITS, VIEW_FEATURES, UNLABELLED_FEATURES, VALIDATION_PREDICTIONS,
                TEST_PREDICTIONS)
