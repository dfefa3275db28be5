"""The names of the files that trials leave behind. Nothing is imported: whoever reads a finished study needs no torch.
"""

CHECKPOINT_MARK = "training.json"  # written last: a folder without it is a checkpoint that was cut off
WEIGHTS = "model.safetensors"
TEST_ANSWERS = "test.parquet"
# Of the pieces of the teacher's answers.
VIEWS, UNLABELLED, VALIDATION = "views.npy", "unlabelled.npy", "validation.npy"
RESULT_FILES = (WEIGHTS, TEST_ANSWERS)
ANSWER_FILES = (VIEWS, UNLABELLED, VALIDATION, TEST_ANSWERS)
