// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// settingNames are what errors of package engine and those below call the settings, by
// the field: what nri-plugin fills the structs Names with.
var settingNames = sync.OnceValues(func() (map[string]string, error) {
	values, names := map[string]ast.Expr{}, map[string]string{}
	var structs []*ast.CompositeLit
	err := filepath.WalkDir("../nri-plugin", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, value := range n.Values {
					values[n.Names[i].Name] = value
				}
			case *ast.CompositeLit:
				if t, ok := n.Type.(*ast.SelectorExpr); ok && t.Sel.Name == "Names" {
					structs = append(structs, n)
				}
			}
			return true
		})
		return nil
	})
	for _, s := range structs {
		for _, field := range s.Elts {
			field := field.(*ast.KeyValueExpr)
			names[field.Key.(*ast.Ident).Name] = valueOf(field.Value, values)
		}
	}
	return names, err
})

// valueOf is a text in which constants are what they are, and "…" is what varies.
func valueOf(e ast.Expr, constants map[string]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return literal(e)
	case *ast.BinaryExpr:
		return valueOf(e.X, constants) + valueOf(e.Y, constants)
	case *ast.Ident:
		if c := constants[e.Name]; c != nil {
			return valueOf(c, constants)
		}
	case *ast.SelectorExpr:
		return valueOf(e.Sel, constants)
	case *ast.FuncLit:
		if r, ok := e.Body.List[0].(*ast.ReturnStmt); ok {
			return valueOf(r.Results[0], constants)
		}
	}
	return varies
}

// nameField is the field of a struct Names that an expression reads, or calls.
func nameField(e ast.Expr) (field string, is bool) {
	if call, ok := e.(*ast.CallExpr); ok {
		e = call.Fun
	}
	name, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	of := ""
	switch x := name.X.(type) {
	case *ast.Ident:
		of = x.Name
	case *ast.SelectorExpr:
		of = x.Sel.Name
	}
	return name.Sel.Name, of == "names" || of == "Names"
}

// settingName is what the user sees in the place of such an expression.
func settingName(e ast.Expr) string {
	field, is := nameField(e)
	if !is {
		return ""
	}
	names, _ := settingNames() // TestSettingNames has the error
	return names[field]
}

// TestSettingNames: the texts that have the name of a setting are read with it.
func TestSettingNames(t *testing.T) {
	names, err := settingNames()
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"AuthKey": "TS_AUTHKEY", "NodeTags": "the annotation tailscale.com/tags", "Proxy": "HTTPS_PROXY and HTTP_PROXY",
		"Profile": "the keys ….TS_…",
	} {
		if names[field] != want {
			t.Errorf("%s is called %q, want %q", field, names[field], want)
		}
	}
	read := map[string]bool{}
	eachSource(t, func(path string, set *token.FileSet, file *ast.File) {
		if !strings.HasPrefix(path, "../engine/") || filepath.Base(path) == "names.go" {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			e, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if field, is := nameField(e); is && ast.IsExported(field) {
				read[field] = true
				if names[field] == "" {
					t.Errorf("%s: nri-plugin has no name for %s", set.Position(e.Pos()), field)
				}
			}
			return true
		})
	})
	for field := range names {
		if !read[field] {
			t.Errorf("no text has the name %s", field)
		}
	}
	const text = "put the keys ….TS_… back; or delete the device there by hand, and the node's directory in TS_STATE_DIR while the program does not run"
	if !slices.Contains(programTexts(t), text) {
		t.Errorf("no source says %q", text)
	}
}
