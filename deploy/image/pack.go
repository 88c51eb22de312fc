// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// product is everything that is made from one binary.
type product struct {
	binary *binary
	image  v1.Image
	sbom   []byte
}

func makeProduct(req request, path string) (product, error) {
	b, err := readBinary(path)
	if err != nil {
		return product{}, err
	}
	img, err := buildImage(req, b)
	if err != nil {
		return product{}, err
	}
	sbom, err := makeSBOM(req, b)
	return product{b, img, sbom}, err
}

// pack makes everything and writes it to req.out.
func pack(req request) (*report, error) {
	var products []product
	for _, path := range req.binaries {
		p, err := makeProduct(req, path)
		if err != nil {
			return nil, err
		}
		for _, other := range products {
			if other.binary.platform.Equals(p.binary.platform) {
				return nil, fmt.Errorf("%s is the second binary for %s; give one for each platform", path, p.binary.platform)
			}
		}
		products = append(products, p)
	}
	if err := removeEarlier(req.out); err != nil {
		return nil, fmt.Errorf("removing what an earlier run has written: %w", err)
	}
	index := makeIndex(req, products)
	if err := writeLayout(req, index, products); err != nil {
		return nil, fmt.Errorf("writing the image layout: %w", err)
	}
	digest, err := index.Digest()
	if err != nil {
		return nil, fmt.Errorf("computing the index's digest: %w", err)
	}
	report := &report{name: req.ref.short, version: req.version, digest: digest}
	for _, p := range products {
		written, err := writeFiles(req, p)
		if err != nil {
			return nil, err
		}
		report.images = append(report.images, written)
	}
	return report, nil
}

// removeEarlier removes the files next to the layout: otherwise an archive of an earlier build, for a platform that is
// not asked for any more, would be taken for one of this build.
func removeEarlier(dir string) error {
	for _, kind := range []string{".tar", ".spdx.json"} {
		files, err := filepath.Glob(filepath.Join(dir, program+"-*"+kind))
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}

func makeIndex(req request, products []product) v1.ImageIndex {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range products {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: p.image, Descriptor: v1.Descriptor{Platform: &p.binary.platform},
		})
	}
	return mutate.Annotations(index, labels(req)).(v1.ImageIndex)
}

// writeLayout removes oci/ and writes it. Its index.json names one image, the index of all platforms, and the bills of
// materials, each of which refers to the image that it describes.
func writeLayout(req request, index v1.ImageIndex, products []product) error {
	dir := filepath.Join(req.out, "oci")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := to.AppendIndex(index, layout.WithAnnotations(nameAnnotations(req.ref))); err != nil {
		return err
	}
	for _, p := range products {
		if err := attachSBOM(to, p); err != nil {
			return err
		}
	}
	return nil
}

// attachSBOM adds an artifact whose subject is the image (image specification 1.1), so that a registry lists it among
// the image's referrers.
func attachSBOM(to layout.Path, p product) error {
	subject, err := describe(p.image)
	if err != nil {
		return err
	}
	subject.Platform = nil
	sbom, err := writeBlob(to, p.sbom, spdxType)
	if err != nil {
		return err
	}
	nothing, err := writeBlob(to, []byte("{}"), types.OCIEmptyJSON)
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: spdxType,
		Config: nothing, Layers: []v1.Descriptor{sbom}, Subject: subject,
	})
	if err != nil {
		return err
	}
	desc, err := writeBlob(to, manifest, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	desc.ArtifactType = spdxType
	return to.AppendDescriptor(desc)
}

func writeBlob(to layout.Path, data []byte, kind types.MediaType) (v1.Descriptor, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: kind, Digest: digest, Size: size}, to.WriteBlob(digest, io.NopCloser(bytes.NewReader(data)))
}

// writeFiles writes the files next to the layout.
func writeFiles(req request, p product) (imageReport, error) {
	digest, err := p.image.Digest()
	if err != nil {
		return imageReport{}, fmt.Errorf("computing the image's digest: %w", err)
	}
	archive, err := makeArchive(req.ref, p.image, req.created)
	if err != nil {
		return imageReport{}, err
	}
	base := filepath.Join(req.out, program+"-"+p.binary.platform.Architecture)
	if err := os.WriteFile(base+".spdx.json", p.sbom, 0o644); err != nil {
		return imageReport{}, fmt.Errorf("writing the bill of materials: %w", err)
	}
	if err := os.WriteFile(base+".tar", archive, 0o644); err != nil {
		return imageReport{}, fmt.Errorf("writing the archive: %w", err)
	}
	return imageReport{
		platform: p.binary.platform.String(), digest: digest, archive: base + ".tar",
		size: len(archive), unpacked: len(p.binary.data), modules: len(p.binary.info.Deps),
	}, nil
}
