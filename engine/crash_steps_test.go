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
// among them that do not.
var (
	changes = regexp.MustCompile(`^os\.(Chmod|Chown|Chtimes|Create|CreateTemp|Link|Mkdir|MkdirAll|MkdirTemp|OpenFile|Remove|RemoveAll|Rename|Symlink|Truncate|WriteFile)$|` +
		`^unix\.(Link|Mkdir|Mount|Rename|Rmdir|Symlink|Truncate|Unlink|Unmount)|` +
		`^podnet\.[A-Z]|\.Router\.Set$|^(link|router)\.Restore$|^fence\.Fence$|` +
		`^atomicfile\.|^store\.|\.WriteState$|\.FileStore\.Remove$|\.rec\.save$|^replaceFile$|` +
		`\.door\.|^(\w+|s\.b)\.(Start|StartLoginInteractive|EditPrefs|Logout)$`)
	reads = regexp.MustCompile(`^podnet\.(FindNamespace|FindHostLink|HostLink|IsHostLink|Exists|NeverForwarded|Inspect|OursByName)$|` +
		`\.door\.(ControlURL|Devices|Device|LockKey|Ours|Refusal|RequestsTags|WrongTags)$`)
)

// outsideSteps are the functions that change something outside a step, and why
// that is right.
var outsideSteps = map[string]string{
	"newEngine":          "ShareInterfaces changes nothing",
	"node.installKeys":   "the directory that node.prepare has made, should it have gone",
	"TryKernel":          "in network namespaces that end with it",
	"openClaim":          "before there is a node: the directory",
	"removeAllBut":       "node.removeState takes the step",
	"taggedRouter.Set":   "steppedRouter, which is around it, takes the step",
	"record.save":        "node.save takes the step",
	"rewriteFile":        "node.writeResolvConf takes the step",
	"replaceFile":        "record.save and stateStore.writeStates are its callers",
	"loadRecords":        "before there is a node: what a kill left half made or half removed, and what nobody can read",
	"netmapKeeper.write": "an empty directory: the files in it are steps",
	"Engine.keepServed":  "the time of day",
	"Engine.tidy":        "what keepServed has made",
	"node.restore":       "what a step has made, and what the next process's first steps would restore",
	"session.followExit": "a preference: writing the state is a step, and the next session looks again",
	"guardedRouter.Set":  "steppedRouter takes the step",
	"Engine.watchLinks":  "it listens",
	"node.lendNetmap":    "made anew at each start",
	"node.reclaimNetmap": "what lendNetmap has made",
	"removeHalfWritten":  "before there is a node",
	"setAsideAs":         "mendState takes the step; else before there is a node",
	"checkWritable":      "a file that is gone again",
	"backend.start":      "the tailnet admits the node when it likes; its key is on disk, and the record says that it knocks",
	"makeSocketDir":      "made anew at each start, removed with the node's state",
	"listenLocalAPI":     "made anew at each start, removed with the node's state",
	"node.logOut":        "a backend that does not want to run tells nobody anything until it is logged out, which is a step",

	"guarded.restoreLink":  "as node.restore",
	"guarded.restoreFence": "as node.restore",
}

// TestChangesAreSteps has every change of what outlives the process be a step,
// so that TestKilledAtEachStep covers it.
func TestChangesAreSteps(t *testing.T) {
	found := map[string][]string{}
	eachFunction(t, func(name string, f *ast.FuncDecl) {
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			switch callee := types.ExprString(call.Fun); {
			case strings.HasSuffix(callee, ".take"):
				return false // a step
			case changes.MatchString(callee) && !reads.MatchString(callee):
				found[name] = append(found[name], callee)
			}
			return true
		})
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

// eachFunction calls visit with every function of the package, as "name" or
// "receiver.name".
func eachFunction(t *testing.T, visit func(name string, f *ast.FuncDecl)) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source here (%v)", err)
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
				t.Fatalf("steps.go: %s is no string: %v", types.ExprString(v), err)
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
