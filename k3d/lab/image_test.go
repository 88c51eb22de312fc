// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLayout reads an image layout back: each blob is what its name says, and each reference leads to one.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	binary, file := filepath.Join(dir, "tool"), filepath.Join(dir, "layout.tar")
	if err := os.WriteFile(binary, []byte("static"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeLayout(file, []Image{{Ref: "example.test/a:1", Binary: binary, Args: []string{"x"}}}); err != nil {
		t.Fatal(err)
	}
	entries := readTar(t, file)
	for name, data := range entries {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest != fmt.Sprintf("%x", sha256.Sum256(data)) {
			t.Errorf("blob %s holds something else", name)
		}
	}
	var index struct{ Manifests []descriptor }
	decode(t, entries["index.json"], &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "example.test/a:1" {
		t.Fatalf("index lists %+v", index.Manifests)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, entries[blobPath(index.Manifests[0])], &manifest)
	var config struct {
		Config struct{ Entrypoint, Cmd []string }
	}
	decode(t, entries[blobPath(manifest.Config)], &config)
	if fmt.Sprint(config.Config) != "{[/tool] [x]}" {
		t.Errorf("the image runs %v", config.Config)
	}
	for _, layer := range manifest.Layers {
		if len(entries[blobPath(layer)]) != layer.Size {
			t.Errorf("layer %+v is not there", layer)
		}
	}
}

func blobPath(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %q", err, data)
	}
}

func readTar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if entries[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLayoutIsReproducible: the same binaries give the same digests, so that containerd finds an image unchanged.
func TestLayoutIsReproducible(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "tool")
	if err := os.WriteFile(binary, []byte("static"), 0o755); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for _, name := range []string{"a.tar", "b.tar"} {
		file := filepath.Join(dir, name)
		if err := writeLayout(file, []Image{{Ref: "example.test/a:1", Binary: binary}}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && string(first) != string(data) {
			t.Error("two layouts of one binary differ")
		}
		first = data
	}
}
