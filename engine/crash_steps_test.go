// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// changes match calls that change what outlives this process, and reads those
// among them that do not. Those of package podstate are found in its source.
var (
	changes = regexp.MustCompile(`^os\.(Chmod|Chown|Chtimes|Create|CreateTemp|Link|Mkdir|MkdirAll|MkdirTemp|OpenFile|Remove|RemoveAll|Rename|Symlink|Truncate|WriteFile)$|` +
		`^unix\.(Link|Mkdir|Mount|Rename|Rmdir|Symlink|Truncate|Unlink|Unmount)|` +
		`^(podnet|hostnet)\.[A-Z]|\.Router\.Set$|^(link|router)\.Restore$|^fence\.Fence$|` +
		`^atomicfile\.|^store\.|\.WriteState$|\.FileStore\.Remove$|` +
		`\.inner\.|^(\w+|s\.b)\.(Start|StartLoginInteractive|EditPrefs|Logout)$`)
	reads = regexp.MustCompile(`^podnet\.(AwaitGracePeriod|FindNamespace|HostLink|IsHostLink|Exists|NeverForwarded|Inspect|HostBoot|OursByName)$|` +
		`^hostnet\.(NewMonitor|ShareInterfaces)$|` +
		`\.inner\.(ControlURL|Devices|Device|KeyRenewal|LockKey|Ours|Refusal|RequestsTags|WrongTags)$`)
)

// outsideSteps are the functions that change something outside a step, and why
// that is right.
var outsideSteps = map[string]string{
	"ClaimState":         "before there is a node: the directory",
	"newEngine":          "before there is a node: what a kill left half made or half removed, what nobody can read, and a file that is gone again",
	"node.readyKeys":     "a file that is gone again",
	"node.installKeys":   "the directory that node.prepare has made, should it have gone",
	"TryKernel":          "in network namespaces that end with it",
	"taggedRouter.Set":   "steppedRouter, which is around it, takes the step",
	"netmapKeeper.write": "an empty directory: the files in it are steps",
	"Engine.keepServed":  "the time of day",
	"Engine.tidy":        "what keepServed has made",
	"node.restore":       "what a step has made, and what the next process's first steps would restore",
	"session.followExit": "a preference: writing the state is a step, and the next session looks again",
	"guardedRouter.Set":  "steppedRouter takes the step",
	"patientRouter.Set":  "steppedRouter takes the step",
	"Engine.watchLinks":  "it listens",
	"node.lendNetmap":    "created at each start",
	"node.reclaimNetmap": "what lendNetmap has made",
	"backend.start":      "the tailnet admits the node when it likes; its key is on disk, and the record says that it tries to log in",
	"makeSocketDir":      "created at each start, removed with the node's state",
	"listenLocalAPI":     "created at each start, removed with the node's state",
	"node.logOut":        "a backend that does not want to run tells nobody anything until it is logged out, which is a step",

	"guarded.restoreLink":  "as node.restore",
	"guarded.restoreFence": "as node.restore",
}

// TestChangesAreSteps has every change of what outlives the process be a step,
// so that TestKilledAtEachStep covers it.
func TestChangesAreSteps(t *testing.T) {
	onDisk := diskChanges(t)
	found := map[string][]string{}
	eachCall(t, ".", func(function, callee string) {
		name, ofPodstate := strings.CutPrefix(callee, "podstate.")
		if ofPodstate && onDisk[name] || isChange(callee) {
			found[function] = append(found[function], callee)
		}
	})
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if outsideSteps[name] == "" {
			t.Errorf("%s calls %s outside of Engine.take: make it a step, or say in outsideSteps why it is none",
				name, strings.Join(found[name], ", "))
		}
	}
	for name := range outsideSteps {
		if found[name] == nil {
			t.Errorf("%s changes nothing any more: take it from outsideSteps", name)
		}
	}
}

func isChange(callee string) bool { return changes.MatchString(callee) && !reads.MatchString(callee) }

// diskChanges returns the functions of podstate that change what is on disk
// without a Take, themselves or by what they call: who calls one takes the step.
func diskChanges(t *testing.T) map[string]bool {
	t.Helper()
	calls, out := map[string][]string{}, map[string]bool{}
	mark := func(function string) {
		out[function] = true
		if method := methodOf(function); method != "" {
			out[method] = true
		}
	}
	eachCall(t, "internal/podstate", func(function, callee string) {
		calls[function] = append(calls[function], callee)
		if isChange(callee) {
			mark(function)
		}
	})
	for again := true; again; {
		again = false
		for function, callees := range calls {
			if !out[function] && slices.ContainsFunc(callees, func(callee string) bool { return out[callee] || out[methodOf(callee)] }) {
				mark(function)
				again = true
			}
		}
	}
	for name := range out {
		// TestChangesAreSteps would not know it from other types' methods.
		if method, ok := strings.CutPrefix(name, "."); ok && token.IsExported(method) {
			t.Errorf("podstate's method %s changes what is on disk without a Take: give it one, or make it a function", method)
		}
	}
	for function, want := range map[string]bool{
		"Save": true, "ReplaceFile": true, "SetCopyAside": true, "LoadAll": true, "ClaimState": true,
		"Load": false, "Inspect": false, "EnsureNodeKey": false, "Store.WriteState": false, "NetmapStore.Store": false,
	} {
		if calls[function] == nil || out[function] != want {
			t.Errorf("podstate's %s changes what is on disk: %v, want %v", function, out[function], want)
		}
	}
	return out
}

// methodOf returns ".method" of "receiver.method", whatever the receiver; "" of
// a function.
func methodOf(name string) string {
	if _, method, ok := strings.Cut(name, "."); ok {
		return "." + method
	}
	return ""
}

// eachCall calls visit with every call in the package's functions that is not within a
// step. A function is "name" or "receiver.name".
func eachCall(t *testing.T, dir string, visit func(function, callee string)) {
	t.Helper()
	eachFunction(t, dir, func(name string, f *ast.FuncDecl) {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			callee := types.ExprString(call.Fun)
			if strings.HasSuffix(callee, ".take") {
				return false // a step
			}
			visit(name, callee)
			return true
		})
	})
}

// eachFunction calls visit with every function of the package in dir, as "name" or
// "receiver.name".
func eachFunction(t *testing.T, dir string, visit func(name string, f *ast.FuncDecl)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in %s (%v)", dir, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			name := f.Name.Name
			if f.Recv != nil {
				name = strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*") + "." + name
			}
			visit(name, f)
		}
	}
}

// declaredSteps returns the constants of type step.
func declaredSteps(t *testing.T) (out []step) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "steps.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Type == nil || types.ExprString(spec.Type) != "step" {
			return true
		}
		for _, v := range spec.Values {
			s, err := strconv.Unquote(types.ExprString(v))
			if err != nil {
				t.Fatalf("steps.go: %s is not a string: %v", types.ExprString(v), err)
			}
			out = append(out, step(s))
		}
		return true
	})
	if len(out) == 0 {
		t.Fatal("steps.go declares no step")
	}
	return out
}
