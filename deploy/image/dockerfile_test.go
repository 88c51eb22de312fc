// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// TestDockerfile holds the Dockerfile's last stage against the image that is made here, since there is no Docker engine
// to build it.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := instructions(string(text))
	if len(stages) != 2 || stages[1]["FROM"] != "scratch" {
		t.Fatalf("stages %q: want one that builds and one from scratch", stages)
	}
	b, err := readBinary(buildSmall(t, "amd64"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := buildImage(request{version: "$VERSION", revision: "$REVISION"}, b)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	entrypoint, err := json.Marshal(config.Config.Entrypoint)
	if err != nil {
		t.Fatal(err)
	}
	// The date is the engine's, and the only label that the Dockerfile has not.
	want := config.Config.Labels
	delete(want, "org.opencontainers.image.created")
	if got := pairs(stages[1]["LABEL"]); !maps.Equal(got, want) {
		t.Errorf("LABEL is %q, in the image are %q", got, want)
	}
	content := mutate.Extract(img)
	defer content.Close()
	files := slices.Collect(maps.Keys(untarReader(t, content)))
	for instruction, want := range map[string]string{
		"USER": config.Config.User, "WORKDIR": config.Config.WorkingDir, "ENTRYPOINT": string(entrypoint),
		"COPY": "--from=build /" + files[0] + " /" + files[0],
	} {
		if got := stages[1][instruction]; got != want {
			t.Errorf("%s is %q, in the image it is %q", instruction, got, want)
		}
	}
	if want := "make build BIN=/" + files[0]; !strings.Contains(stages[0]["RUN"], want) {
		t.Errorf("the program is built by %q, want %q", stages[0]["RUN"], want)
	}
	checkGoVersion(t, stages[0]["FROM"])
}

// instructions are those of each stage; of several of a kind the last counts.
func instructions(dockerfile string) []map[string]string {
	var stages []map[string]string
	for line := range strings.Lines(strings.ReplaceAll(dockerfile, "\\\n", "")) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if word == "" || word == "#" {
			continue
		}
		if word == "FROM" {
			stages = append(stages, map[string]string{})
		}
		stages[len(stages)-1][word] = rest
	}
	return stages
}

// pairs reads KEY="VALUE" KEY="VALUE".
func pairs(text string) map[string]string {
	all := map[string]string{}
	for _, match := range regexp.MustCompile(`(\S+)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		all[match[1]] = match[2]
	}
	return all
}

// checkGoVersion: the compiler is one that go.mod asks for.
func checkGoVersion(t *testing.T, from string) {
	t.Helper()
	mod, err := os.ReadFile(project + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^go (1\.\d+)`).FindSubmatch(mod)
	if want == nil || !strings.Contains(from, "golang:"+string(want[1])+" ") {
		t.Errorf("FROM %s, go.mod wants %q", from, want)
	}
}
