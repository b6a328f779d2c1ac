"""Where images come from (datasets holds the types, digits and .npz files; folders, npy, tfrecords, tfds_images and
camelyon17 are one source each; procedural draws them; public makes any source fit for public pre-training), how they
are decoded and resized (images) and held out (splitting), how views of them are varied (augmentation), how batches are
made (pipelines)."""
