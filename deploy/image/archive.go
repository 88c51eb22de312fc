// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const layoutVersion = `{"imageLayoutVersion":"1.0.0"}`

// nameAnnotations are how containerd and others find an image's name in an index.
func nameAnnotations(ref reference) map[string]string {
	return map[string]string{
		"io.containerd.image.name":          ref.full,
		"org.opencontainers.image.ref.name": ref.tag,
	}
}

// dockerManifest is the entry of an image in the manifest.json of a docker-archive.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// makeArchive writes an image as `docker save` of Docker 25 and later does: index.json and manifest.json describe the
// same blobs. containerd, k3d and Docker with containerd's store read the first, Docker with its own store the second.
func makeArchive(ref reference, img v1.Image, created time.Time) ([]byte, error) {
	blobs, docker, err := imageBlobs(img)
	if err != nil {
		return nil, fmt.Errorf("collecting the image's blobs: %w", err)
	}
	docker.RepoTags = []string{ref.short}
	desc, err := describe(img)
	if err != nil {
		return nil, fmt.Errorf("describing the image: %w", err)
	}
	desc.Annotations = nameAnnotations(ref)
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*desc}})
	if err != nil {
		return nil, fmt.Errorf("writing index.json: %w", err)
	}
	manifest, err := json.Marshal([]dockerManifest{docker})
	if err != nil {
		return nil, fmt.Errorf("writing manifest.json: %w", err)
	}
	head := []file{{"oci-layout", 0o644, []byte(layoutVersion)}, {"index.json", 0o644, index}, {"manifest.json", 0o644, manifest}}
	return makeTar(created, append(head, blobs...))
}

// describe is an image's descriptor with its platform.
func describe(img v1.Image) (*v1.Descriptor, error) {
	desc, err := partial.Descriptor(img)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	desc.Platform = config.Platform()
	return desc, nil
}

func imageBlobs(img v1.Image) (blobs []file, docker dockerManifest, err error) {
	add := func(digest v1.Hash, data []byte) string {
		name := path.Join("blobs", digest.Algorithm, digest.Hex)
		blobs = append(blobs, file{name, 0o644, data})
		return name
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, docker, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, docker, err
	}
	add(digest, manifest)
	if digest, err = img.ConfigName(); err != nil {
		return nil, docker, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, docker, err
	}
	docker.Config = add(digest, config)
	layers, err := img.Layers()
	if err != nil {
		return nil, docker, err
	}
	for _, layer := range layers {
		digest, data, err := readLayer(layer)
		if err != nil {
			return nil, docker, err
		}
		docker.Layers = append(docker.Layers, add(digest, data))
	}
	return blobs, docker, nil
}

func readLayer(layer v1.Layer) (v1.Hash, []byte, error) {
	digest, err := layer.Digest()
	if err != nil {
		return digest, nil, err
	}
	r, err := layer.Compressed()
	if err != nil {
		return digest, nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return digest, data, err
}
