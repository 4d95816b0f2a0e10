"""Can a model that saw text only answer questions about pictures? A made world, measured on two cores.

python -m benchmarks.miniature --seeds 3

world         scenes, their pictures, captions and questions
dual_encoder  a tiny CLIPModel, trained on pairs of that world and saved as a checkpoint
study         the product's embed, transfer and build over made captions; one language model a transfer method
"""
