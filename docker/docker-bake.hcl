# Both images of one version:   TAG=0.1.0 REGISTRY=registry.example.com docker buildx bake -f docker/docker-bake.hcl --push
# Run from the repository's root, which is the build context.
variable "REGISTRY" {
  default = "robustrain"
}

variable "TAG" {
  default = "0.1.0"
}

# FFCV's libraries are those of Debian 12 (bookworm); another release needs other package names in train.Dockerfile.
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
  tags       = ["${REGISTRY}/robustrain-train:${TAG}"]
  platforms  = ["linux/amd64"]
}

target "pipeline" {
  context    = "."
  dockerfile = "docker/pipeline.Dockerfile"
  args       = { PYTHON_IMAGE = PYTHON_IMAGE }
  tags       = ["${REGISTRY}/robustrain-pipeline:${TAG}"]
  platforms  = ["linux/amd64"]
}
