// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"runtime"
	"time"
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

// ImportImages hands images to containerd as one OCI image layout.
func (n *Node) ImportImages(ctx context.Context, images ...Image) error {
	archive := n.Path("images.tar")
	if err := writeLayout(archive, images); err != nil {
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

// blob is content that is addressed by its digest.
type blob []byte

func (b blob) digest() string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// descriptor of the OCI image specification.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (b blob) descriptor(kind string) descriptor {
	return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: b.digest(), Size: len(b)}
}

// writeLayout writes an OCI image layout (image-spec, image-layout.md) as a tar file.
func writeLayout(file string, images []Image) error {
	var blobs []blob
	var manifests []descriptor
	for _, img := range images {
		made, err := img.build()
		if err != nil {
			return err
		}
		manifest := made[len(made)-1].descriptor("manifest.v1+json")
		manifest.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
		manifest.Annotations = map[string]string{"io.containerd.image.name": img.Ref}
		blobs, manifests = append(blobs, made...), append(manifests, manifest)
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
	})
	if err != nil {
		return err
	}
	entries := []tarFile{{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", 0o644, index}}
	for _, b := range blobs {
		entries = append(entries, tarFile{path.Join("blobs/sha256", b.digest()[len("sha256:"):]), 0o644, b})
	}
	layout, err := makeTar(entries)
	if err != nil {
		return err
	}
	return os.WriteFile(file, layout, 0o600)
}

// build makes the image's blobs: layer, configuration, and last the manifest.
func (img Image) build() ([]blob, error) {
	binary, err := os.ReadFile(img.Binary)
	if err != nil {
		return nil, err
	}
	name := path.Base(img.Binary)
	layer, err := makeTar([]tarFile{{name, 0o755, binary}})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"created": time.Unix(0, 0).UTC(), "architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/" + name}, "Cmd": img.Args, "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{blob(layer).digest()}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": blob(config).descriptor("config.v1+json"),
		"layers": []descriptor{blob(layer).descriptor("layer.v1.tar")},
	})
	return []blob{layer, config, manifest}, err
}

type tarFile struct {
	name string
	mode int64
	data []byte
}

func makeTar(files []tarFile) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0)}
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
