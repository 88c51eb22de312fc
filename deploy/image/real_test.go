// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxSize is the largest size of one image, packed: every host pulls it.
const maxSize = 40e6

// real is the command's output for the program itself, on this machine's platform.
type real struct {
	binary, archive, layout string
	sbom                    spdxDocument
}

// TestImageOfTheProgram looks at one image in several ways, since building the program takes its time.
func TestImageOfTheProgram(t *testing.T) {
	dir := t.TempDir()
	made := real{binary: buildReal(t, project), layout: filepath.Join(dir, "oci")}
	if err := run([]string{"-out", dir, "-version", realVersion, made.binary}, io.Discard); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "tailscale-nri-"+strings.TrimSpace(output(t, "go", "env", "GOARCH")))
	made.archive = base + ".tar"
	data, err := os.ReadFile(base + ".spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &made.sbom); err != nil {
		t.Fatal(err)
	}
	t.Run("built elsewhere", made.testElsewhere)
	t.Run("size", made.testSize)
	t.Run("bill of materials", made.testSBOM)
	t.Run("containerd", made.testContainerd)
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", program, args, err)
	}
	return string(out)
}

func (r real) testSize(t *testing.T) {
	info, err := os.Stat(r.archive)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxSize {
		t.Errorf("%.1f MB, at most %.0f", float64(info.Size())/1e6, maxSize/1e6)
	}
}

var (
	spdxID = regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)
	purl   = regexp.MustCompile(`^pkg:golang/[a-z0-9._~!-]+(/[A-Za-z0-9._~!-]+)*@[A-Za-z0-9._~%-]+$`)
)

// testSBOM compares the bill of materials with the output of `go version -m` for the same binary.
func (r real) testSBOM(t *testing.T) {
	want := map[string]string{"tailscale-nri": realVersion}
	sums := map[string]string{}
	for line := range strings.Lines(output(t, "go", "version", "-m", r.binary)) {
		switch fields := strings.Fields(line); {
		case len(fields) == 2 && strings.HasPrefix(fields[1], "go1"):
			want["stdlib"] = strings.TrimPrefix(fields[1], "go")
		case len(fields) == 4 && fields[0] == "dep":
			want[fields[1]], sums[fields[1]] = fields[2], "go.sum: "+fields[3]
		}
	}
	if len(sums) < 20 || want["tailscale.com"] == "" {
		t.Fatalf("go version -m lists %d modules", len(sums))
	}
	ids := map[string]bool{}
	for _, p := range r.sbom.Packages {
		if want[p.Name] != p.VersionInfo {
			t.Errorf("%s %s, in the binary is %q", p.Name, p.VersionInfo, want[p.Name])
		}
		if sum := sums[p.Name]; sum != "" && p.SourceInfo != sum {
			t.Errorf("%s: %q, want %q", p.Name, p.SourceInfo, sum)
		}
		if ids[p.SPDXID] || !spdxID.MatchString(p.SPDXID) {
			t.Errorf("%s: identifier %q", p.Name, p.SPDXID)
		}
		if ids[p.SPDXID] = true; len(p.ExternalRefs) != 1 || !purl.MatchString(p.ExternalRefs[0].Locator) {
			t.Errorf("%s: references %q", p.Name, p.ExternalRefs)
		}
	}
	if len(r.sbom.Packages) != len(want) {
		t.Errorf("%d packages, want %d", len(r.sbom.Packages), len(want))
	}
	checkRelationships(t, r.sbom)
	if got := r.sbom.Packages[0].Checksums; len(got) != 1 || got[0].Value != digest(t, r.binary) {
		t.Errorf("checksums of the program: %q", got)
	}
}

// checkRelationships: the document describes the program, and that depends on each of the others.
func checkRelationships(t *testing.T, sbom spdxDocument) {
	t.Helper()
	main := sbom.Packages[0].SPDXID
	related := map[string]string{}
	for _, r := range sbom.Relationships {
		related[r.Related] = r.Element + " " + r.Type
	}
	for i, p := range sbom.Packages {
		want := main + " DEPENDS_ON"
		if i == 0 {
			want = spdxDocumentID + " DESCRIBES"
		}
		if related[p.SPDXID] != want {
			t.Errorf("%s is related as %q, want %q", p.SPDXID, related[p.SPDXID], want)
		}
	}
}
