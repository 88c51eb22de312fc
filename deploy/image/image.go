// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// program is the only file of the image, in its root.
const program = "tailscale-nri"

const (
	title       = "tailscale-nri"
	description = "Gives annotated Kubernetes pods a tailnet node each (containerd NRI plugin)"
	licence     = "BSD-3-Clause"
)

// labels are those of the OCI image specification, annotations.md.
func labels(req request) map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":       title,
		"org.opencontainers.image.description": description,
		"org.opencontainers.image.licenses":    licence,
		"org.opencontainers.image.version":     req.version,
		"org.opencontainers.image.created":     req.created.Format(time.RFC3339),
	}
	if req.revision != "" {
		all["org.opencontainers.image.revision"] = req.revision
	}
	return all
}

// buildImage puts a binary into an image of its own.
func buildImage(req request, b *binary) (v1.Image, error) {
	layer, err := makeLayer(b.data, req.created)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: b.platform.OS, Architecture: b.platform.Architecture, Created: v1.Time{Time: req.created},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{User: "0", WorkingDir: "/", Entrypoint: []string{"/" + program}, Labels: labels(req)},
	})
	if err != nil {
		return nil, fmt.Errorf("making the image's configuration: %w", err)
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: req.created}, CreatedBy: "make image", Comment: "/" + program},
	})
	if err != nil {
		return nil, fmt.Errorf("adding the image's layer: %w", err)
	}
	return img, nil
}

func makeLayer(data []byte, created time.Time) (v1.Layer, error) {
	content, err := makeTar(created, []file{{name: program, mode: 0o755, data: data}})
	if err != nil {
		return nil, fmt.Errorf("making the image's layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// file is an entry of a tar file.
type file struct {
	name string
	mode int64
	data []byte
}

// makeTar makes a tar file without an author and with a fixed date.
func makeTar(created time.Time, files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: created, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
