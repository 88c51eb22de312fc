// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The images of the lab, known to no registry.
const (
	pauseImage = "tailscale-nri.test/pause:1"
	// ToolImage holds labtool (image/labtool) and nothing else; it runs `labtool all` unless told otherwise.
	ToolImage = "tailscale-nri.test/labtool:1"
)

// Image is an OCI image of one static binary.
type Image struct {
	Ref    string
	Binary string   // on this machine; its base name in the image's root
	Args   []string // after the binary
}

func (c Config) images() []Image {
	return []Image{
		{Ref: pauseImage, Binary: c.image("pause")},
		{Ref: ToolImage, Binary: c.image("labtool"), Args: []string{"all"}},
	}
}

// ImportImages hands images to containerd as one archive.
func (n *Node) ImportImages(ctx context.Context, images ...Image) error {
	archive := n.Path("images.tar")
	if err := writeArchive(archive, images); err != nil {
		return fmt.Errorf("writing the images: %w", err)
	}
	defer os.Remove(archive)
	return n.ImportArchive(ctx, archive)
}

// ImportArchive hands containerd the images of a tar file, with ctr as an administrator would.
func (n *Node) ImportArchive(ctx context.Context, archive string) error {
	_, err := n.Exec(ctx, n.cfg.bin("ctr"), "--namespace", "k8s.io", "images", "import", archive)
	return err
}

// writeArchive writes images as one tar file, as docker save does. The same binaries give the same digests, so that
// containerd finds an image unchanged.
func writeArchive(file string, images []Image) error {
	all := make(map[name.Reference]v1.Image, len(images))
	for _, img := range images {
		ref, err := name.NewTag(img.Ref, name.StrictValidation)
		if err != nil {
			return err
		}
		if all[ref], err = img.build(); err != nil {
			return err
		}
	}
	return tarball.MultiRefWriteToFile(file, all)
}

func (img Image) build() (v1.Image, error) {
	binary, err := os.ReadFile(img.Binary)
	if err != nil {
		return nil, err
	}
	program := path.Base(img.Binary)
	content, err := tarOf(program, binary)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, err
	}
	made, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := made.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = runtime.GOARCH, "linux"
	config.Config = v1.Config{Entrypoint: []string{"/" + program}, Cmd: img.Args, Env: []string{"PATH=/"}}
	return mutate.ConfigFile(made, config)
}

// tarOf returns a tar file with one program in it, and no time.
func tarOf(program string, data []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: program, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}
