"""Where images come from (datasets holds the types, digits and .npz files; folders, npy, tfrecords, tfds_images and
camelyon17 are one source each; procedural draws them; public makes any source fit for public pre-training), how they
are decoded and resized (images) and held out (splitting), what is taken for arrays, classes and people (arrays,
classes, owner_names), how views of images are varied (augmentation), how batches are made (pipelines)."""
