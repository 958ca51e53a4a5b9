# Both images of one version:
#   TAG=0.1.0 REGISTRY=registry.example.com/robustrain docker buildx bake -f docker/docker-bake.hcl --push
# builds REGISTRY/pipeline:TAG, which the user who submits a run names in ROBUSTRAIN_PIPELINE_IMAGE, and
# REGISTRY/train:TAG, which ROBUSTRAIN_IMAGE in the ConfigMap names. Without REGISTRY the first has the name that a
# compiled pipeline uses by default. Run from the repository's root, which is the build context.
variable "REGISTRY" {
  default = "robustrain"
}

variable "TAG" {
  default = "0.1.0"
}

# FFCV links libraries of Debian 12 (bookworm); another release needs other package names in train.Dockerfile.
variable "PYTHON_IMAGE" {
  default = "python:3.11-slim-bookworm"
}

group "default" {
  targets = ["train", "pipeline"]
}

target "train" {
  context    = "."
  dockerfile = "docker/train.Dockerfile"
  args       = { PYTHON_IMAGE = PYTHON_IMAGE }
  tags       = ["${REGISTRY}/train:${TAG}"]
  platforms  = ["linux/amd64"]
}

target "pipeline" {
  context    = "."
  dockerfile = "docker/pipeline.Dockerfile"
  args       = { PYTHON_IMAGE = PYTHON_IMAGE }
  tags       = ["${REGISTRY}/pipeline:${TAG}"]
  platforms  = ["linux/amd64"]
}
