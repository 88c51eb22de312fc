// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// packed is the command's output for small programs for two platforms.
func packed(t *testing.T) (dir, report string) {
	t.Helper()
	dir = t.TempDir()
	var out strings.Builder
	args := []string{"-out", dir, "-version", "v1", "-revision", "abc", "-created", "1700000000",
		buildSmall(t, "amd64"), buildSmall(t, "arm64")}
	if err := run(args, &out); err != nil {
		t.Fatal(err)
	}
	return dir, out.String()
}

// TestReproducible: the same input gives the same output to the last byte, names included.
func TestReproducible(t *testing.T) {
	one, said := packed(t)
	two, saidAgain := packed(t)
	first, second := tree(t, one), tree(t, two)
	if !maps.EqualFunc(first, second, bytes.Equal) {
		t.Errorf("two runs differ: %q and %q", slices.Sorted(maps.Keys(first)), slices.Sorted(maps.Keys(second)))
	}
	if strings.ReplaceAll(said, one, "") != strings.ReplaceAll(saidAgain, two, "") {
		t.Errorf("two runs say\n%s%s", said, saidAgain)
	}
}

// tree is the content of every file below dir.
func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files[path], err = os.ReadFile(filepath.Join(dir, path))
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("reading %s: %d files, %v", dir, len(files), err)
	}
	return files
}

// TestLayout: the layout is whole, names one image for two platforms, and holds a bill of materials for each of them,
// which a registry finds by its subject.
func TestLayout(t *testing.T) {
	dir, said := packed(t)
	path, err := layout.FromPath(filepath.Join(dir, "oci"))
	if err != nil {
		t.Fatal(err)
	}
	top, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 3 {
		t.Fatalf("index.json: %+v, %v", manifest, err)
	}
	named := manifest.Manifests[0]
	if named.Annotations["io.containerd.image.name"] != "docker.io/library/tailscale-nri:dev" || named.Annotations["org.opencontainers.image.ref.name"] != "dev" {
		t.Errorf("the image is named %q", named.Annotations)
	}
	if !strings.Contains(said, named.Digest.String()) {
		t.Errorf("the report does not have the index's digest %s:\n%s", named.Digest, said)
	}
	index, err := top.ImageIndex(named.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	var subjects []v1.Hash
	for _, desc := range manifest.Manifests[1:] {
		subjects = append(subjects, checkReferrer(t, path, desc))
	}
	images, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(images.Manifests) != 2 {
		t.Fatalf("%d images, want 2", len(images.Manifests))
	}
	for i, desc := range images.Manifests {
		if subjects[i] != desc.Digest {
			t.Errorf("the bill of materials of %s is of %s", desc.Platform, subjects[i])
		}
	}
}

// checkReferrer returns the image that a bill of materials in the layout describes.
func checkReferrer(t *testing.T, path layout.Path, desc v1.Descriptor) v1.Hash {
	t.Helper()
	raw, err := path.Bytes(desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	if desc.ArtifactType != spdxType || manifest.ArtifactType != spdxType || manifest.Subject == nil || len(manifest.Layers) != 1 {
		t.Fatalf("no bill of materials: %s", raw)
	}
	for _, blob := range append(manifest.Layers, manifest.Config) {
		data, err := path.Bytes(blob.Digest)
		if err != nil || int64(len(data)) != blob.Size {
			t.Errorf("blob %s: %d bytes, want %d, %v", blob.Digest, len(data), blob.Size, err)
		}
	}
	return manifest.Subject.Digest
}

// TestArchive reads the archive as Docker does, by its manifest.json, and as containerd does, by its index.json: it is
// the same image, which holds one file.
func TestArchive(t *testing.T) {
	dir, _ := packed(t)
	for _, arch := range []string{"amd64", "arm64"} {
		archive := filepath.Join(dir, "tailscale-nri-"+arch+".tar")
		tag, err := name.NewTag("tailscale-nri:dev")
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(archive, &tag)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch)
		entries := untar(t, archive)
		var index v1.IndexManifest
		if err := json.Unmarshal(entries["index.json"], &index); err != nil || len(index.Manifests) != 1 {
			t.Fatalf("index.json: %s, %v", entries["index.json"], err)
		}
		manifest, err := v1.ParseManifest(bytes.NewReader(entries["blobs/sha256/"+index.Manifests[0].Digest.Hex]))
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigName()
		if err != nil || manifest.Config.Digest != config {
			t.Errorf("Docker reads the configuration %s, containerd %s", config, manifest.Config.Digest)
		}
	}
}

// TestFewerPlatforms: platforms that are not asked for any more are removed.
func TestFewerPlatforms(t *testing.T) {
	dir, _ := packed(t)
	if err := run([]string{"-out", dir, "-version", "v2", buildSmall(t, "arm64")}, io.Discard); err != nil {
		t.Fatal(err)
	}
	var others []string
	for name := range tree(t, dir) {
		if !strings.HasPrefix(name, "oci/") {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	if want := []string{"tailscale-nri-arm64.spdx.json", "tailscale-nri-arm64.tar"}; !slices.Equal(others, want) {
		t.Errorf("next to the layout are %q, want %q", others, want)
	}
}

func checkImage(t *testing.T, img v1.Image, arch string) {
	t.Helper()
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if config.Architecture != arch || c.User != "0" || c.WorkingDir != "/" || !slices.Equal(c.Entrypoint, []string{"/tailscale-nri"}) || len(c.Cmd)+len(c.Env) != 0 {
		t.Errorf("configuration %+v", config)
	}
	if c.Labels["org.opencontainers.image.created"] != "2023-11-14T22:13:20Z" || c.Labels["org.opencontainers.image.revision"] != "abc" {
		t.Errorf("labels %q", c.Labels)
	}
	content := mutate.Extract(img)
	defer content.Close()
	files := untarReader(t, content)
	if names := slices.Collect(maps.Keys(files)); !slices.Equal(names, []string{"tailscale-nri"}) {
		t.Errorf("the image holds %q", names)
	}
}

func TestBadRequests(t *testing.T) {
	small := buildSmall(t, "amd64")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable() // the test itself, which the C library's linker loads
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "give -out DIRECTORY"},
		{[]string{"-out", t.TempDir()}, "a binary for each platform"},
		{[]string{"-out", t.TempDir(), "-ref", "No:Caps", small}, `IMAGE="No:Caps"`},
		{[]string{"-out", t.TempDir(), "-created", "today", small}, `-created="today"`},
		{[]string{"-out", t.TempDir(), small, small}, "second binary for linux/amd64"},
		{[]string{"-out", t.TempDir(), text}, text},
		{[]string{"-out", t.TempDir(), dynamic(t, self)}, "CGO_ENABLED=0"},
	} {
		if err := run(tt.args, io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestReference(t *testing.T) {
	for _, tt := range []struct{ text, full, short, tag string }{
		{"tailscale-nri:dev", "docker.io/library/tailscale-nri:dev", "tailscale-nri:dev", "dev"},
		{"me/nri:1", "docker.io/me/nri:1", "me/nri:1", "1"},
		{"localhost:5000/nri:1", "localhost:5000/nri:1", "localhost:5000/nri:1", "1"},
		{"registry.example.com/a/nri:v1.2", "registry.example.com/a/nri:v1.2", "registry.example.com/a/nri:v1.2", "v1.2"},
	} {
		got, err := parseReference(tt.text)
		if err != nil || got != (reference{tt.full, tt.short, tt.tag}) {
			t.Errorf("%s: %+v, %v", tt.text, got, err)
		}
	}
}
