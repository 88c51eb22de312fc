// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// testArchive writes an archive of one image.
func testArchive(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	binary, file := filepath.Join(dir, "tool"), filepath.Join(dir, "images.tar")
	if err := os.WriteFile(binary, []byte("static"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeArchive(file, []Image{{Ref: "example.test/a:1", Binary: binary, Args: []string{"x"}}}); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestArchive reads an archive back.
func TestArchive(t *testing.T) {
	tag, err := name.NewTag("example.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(testArchive(t), &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(config.Config.Entrypoint, config.Config.Cmd); got != "[/tool] [x]" {
		t.Errorf("the image runs %s", got)
	}
}

// TestArchiveIsReproducible: the same binary gives the same bytes.
func TestArchiveIsReproducible(t *testing.T) {
	var archives [2]string
	for i := range archives {
		data, err := os.ReadFile(testArchive(t))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = string(data)
	}
	if archives[0] != archives[1] {
		t.Error("two archives of one binary differ")
	}
}
