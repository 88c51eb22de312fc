// SPDX-License-Identifier: BSD-3-Clause

package engine_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

const (
	module   = "tailscale-nri/"
	podnet   = module + "engine/internal/podnet"
	hostnet  = module + "engine/internal/hostnet"
	podstate = module + "engine/internal/podstate"
	nstest   = module + "engine/internal/nstest"
	plugin   = module + "nri-plugin"
	kubectl  = plugin + "/kubectl-tailscale_nri"
)

// forTests are the plugin's packages that no program has.
var forTests = []string{
	plugin + "/internal/plugintest", plugin + "/internal/statustest", plugin + "/internal/kubeapi/apitest",
}

// layering is which way imports go: nri-plugin → engine → {tailnet, hostnet, podstate → podnet}.
var layering = []struct {
	of     string   // packages with this prefix
	except []string // but for these
	ban    []string // prefixes of what they may not depend on
	direct bool     // what they import themselves counts, and not what that imports
	why    string
}{
	{
		of:  module + "engine",
		ban: []string{"github.com/containerd/", "k8s.io/", "sigs.k8s.io/"},
		why: "the engine knows pods as values only: what a runtime or Kubernetes says of one is translated by nri-plugin",
	},
	{
		of: module, except: append([]string{podnet, hostnet, nstest}, forTests...), direct: true,
		ban: []string{"github.com/vishvananda/", "github.com/mdlayher/netlink", "github.com/jsimonetti/rtnetlink"},
		why: "a netns handle has one owner, and ts0 one writer: all that is the kernel's goes through " + podnet +
			", but for the host's own list of interfaces",
	},
	{
		of:  hostnet,
		ban: []string{module, "tailscale.com/ipn", "tailscale.com/control"},
		why: "hostnet reads the interfaces of this process's own netns, for all backends alike: it knows no pod and no node",
	},
	{
		of:  podstate,
		ban: []string{module + "engine/tailnet", hostnet, "tailscale.com/control/controlclient", "tailscale.com/wgengine/magicsock"},
		why: "podstate is files: it runs no backend, and who asks a tailnet decides what is written",
	},
	{
		of:  podnet,
		ban: []string{module, "tailscale.com/ipn/ipnlocal", "tailscale.com/control/controlclient"},
		why: "podnet is the kernel and nothing but the kernel: what it needs of a pod or of the tailnet is handed to it",
	},
	{
		of:  module + "engine/tailnet",
		ban: []string{module, "github.com/vishvananda/", "tailscale.com/ipn/ipnlocal", "tailscale.com/wgengine"},
		why: "tailnet talks to an API over HTTPS: it runs no node and touches no kernel",
	},
	{
		of: plugin, except: forTests,
		ban: []string{"gvisor.dev/gvisor/pkg/tcpip/transport/tcp", "gvisor.dev/gvisor/pkg/tcpip/network"},
		why: "packets go through the kernel: a second network stack in user space costs memory for each pod",
	},
	{
		of: plugin, except: forTests,
		ban: []string{"tailscale.com/ssh", "tailscale.com/feature/ssh", "github.com/tailscale/gliderssh"},
		why: "Tailscale SSH would start its shell in this process's namespaces, not in the pod's",
	},
	{
		of:  plugin,
		ban: []string{"k8s.io/"},
		why: "all that is known of a pod comes from the runtime: no API server is needed at the wrong moment",
	},
	{
		of: plugin, except: forTests,
		ban: append([]string{"testing", module + "k3d", module + "deploy", nstest, "tailscale.com/tstest"}, forTests...),
		why: "what runs as root on every node holds no test code",
	},
	{
		of:  plugin,
		ban: []string{"github.com/google/go-containerregistry", "github.com/santhosh-tekuri/"},
		why: "what packs the program, or checks its files, is not part of it",
	},
	{
		of:  kubectl,
		ban: []string{module + "engine", "tailscale.com", "github.com/containerd/", "github.com/vishvananda/", "github.com/mdlayher/"},
		why: "it runs on users' machines, also on darwin and windows, and asks by kubectl alone",
	},
}

// TestImports covers packages that do not exist yet.
func TestImports(t *testing.T) {
	packages := listPackages(t, module+"engine/...", plugin+"/...")
	for _, rule := range layering {
		applied := false
		for _, p := range packages {
			if !within(p.ImportPath, rule.of) || slices.Contains(rule.except, p.ImportPath) {
				continue
			}
			applied = true
			deps := p.Deps
			if rule.direct {
				deps = p.Imports
			}
			for _, dep := range deps {
				if dep != p.ImportPath && slices.ContainsFunc(rule.ban, func(ban string) bool { return within(dep, ban) }) {
					t.Errorf("%s depends on %s, but %s", p.ImportPath, dep, rule.why)
				}
			}
		}
		if !applied {
			t.Errorf("no package is %s: this rule applies to nothing any more: %s", rule.of, rule.why)
		}
	}
}

// TestImportsAreSeen has the lists that TestImports reads hold what the program cannot be without.
func TestImportsAreSeen(t *testing.T) {
	packages := listPackages(t, plugin, kubectl, podnet)
	for _, want := range []struct{ of, dep string }{
		{plugin, module + "engine"},
		{plugin, "github.com/containerd/nri/pkg/stub"},
		{plugin, "tailscale.com/ipn/ipnlocal"},
		{kubectl, plugin + "/internal/status"},
		{podnet, "github.com/vishvananda/netlink"},
	} {
		if !slices.ContainsFunc(packages, func(p listed) bool {
			return p.ImportPath == want.of && slices.Contains(p.Deps, want.dep)
		}) {
			t.Errorf("%s does not depend on %s", want.of, want.dep)
		}
	}
}

// TestPluginOrder: the plugin's packages import each other in the order of the list that
// a newcomer reads, which has all of them.
func TestPluginOrder(t *testing.T) {
	const list = "../.github/CONTRIBUTING.md"
	page, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| below `nri-plugin/internal` |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]int{}
	for i, row := range strings.Split(table, "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " |")
		for _, m := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(cell, -1) {
			rows[plugin+"/internal/"+m[1]] = i
		}
	}
	packages := listPackages(t, plugin+"/internal/...")
	for _, p := range packages {
		row, ok := rows[p.ImportPath]
		if !ok && p.ImportPath != plugin+"/internal/kubeapi/apitest" {
			t.Errorf("%s has no row with %s", list, p.ImportPath)
		}
		for _, dep := range p.Imports {
			if ok && rows[dep] > row {
				t.Errorf("%s imports %s, which %s has further down", p.ImportPath, dep, list)
			}
		}
	}
	if len(rows) >= len(packages) {
		t.Errorf("%s names %d packages, and there are %d with that for tests of kubeapi", list, len(rows), len(packages))
	}
}

// namesOutside are the settings and annotations of the program that an engine is part of,
// as its manuals have them: what these are called is nri-plugin's to say (Names).
var namesOutside = []struct{ page, row string }{
	{"../README.md", "`(tailscale\\.com/[a-z-]+)`"},
	{"../deploy/SETTINGS.md", "`([A-Z]+(?:_[A-Z]+)+)`"},
}

// namesInside may be in the sources, and why.
var namesInside = map[string]string{
	"engine.go TS_LOGS_DIR": "tailscale.com reads it in this process, and nobody else sets it",
}

// TestNamesStayAbove: neither code nor comments here name a setting or an annotation.
func TestNamesStayAbove(t *testing.T) {
	names := []string{`\bTS_[A-Z_]+`}
	for _, n := range namesOutside {
		page, err := os.ReadFile(n.page)
		if err != nil {
			t.Fatal(err)
		}
		rows := regexp.MustCompile(`(?m)^\| .+`).FindAllString(string(page), -1)
		before := len(names)
		for _, row := range rows {
			cell, _, _ := strings.Cut(row[2:], " |")
			for _, m := range regexp.MustCompile(n.row).FindAllStringSubmatch(cell, -1) {
				names = append(names, `\b`+regexp.QuoteMeta(m[1])+`\b`)
			}
		}
		if len(names)-before < 10 {
			t.Errorf("%s: %d names were found, which are not all", n.page, len(names)-before)
		}
	}
	name := regexp.MustCompile(strings.Join(names, "|"))
	if !name.MatchString("AUTH_KEY_TTL") || !name.MatchString("annotation tailscale.com/tags,") || name.MatchString("tailscale.com/types/key") {
		t.Errorf("the names are %s", name)
	}
	inside := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, found := range name.FindAllString(string(source), -1) {
			inside[path+" "+found] = true
			if namesInside[path+" "+found] == "" {
				t.Errorf("%s names %s: have nri-plugin hand it in (Names), or say in namesInside why not", path, found)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for at := range namesInside {
		if !inside[at] {
			t.Errorf("take %s out of namesInside: it is there no longer", at)
		}
	}
}

// within reports whether path is prefix or below it.
func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// listed is what go list says of a package, without its tests.
type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// listPackages lists them as this test was built: make test gives it the tags of the program.
func listPackages(t *testing.T, patterns ...string) []listed {
	t.Helper()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("this test does not know its build tags")
	}
	args := []string{"list", "-json=ImportPath,Imports,Deps"}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			args = append(args, "-tags="+s.Value)
		}
	}
	cmd := exec.Command("go", append(args, patterns...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, &stderr)
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
