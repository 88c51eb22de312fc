// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"
)

// spdxType is SPDX's registered media type. SPDX rather than CycloneDX, since BuildKit attaches it to images and
// scanners of registries therefore look for it.
const spdxType = "application/spdx+json"

// spdxDocument is the part of SPDX 2.3 that is used here.
type spdxDocument struct {
	SPDXVersion       string             `json:"spdxVersion"`
	DataLicense       string             `json:"dataLicense"`
	SPDXID            string             `json:"SPDXID"`
	Name              string             `json:"name"`
	DocumentNamespace string             `json:"documentNamespace"`
	CreationInfo      spdxCreation       `json:"creationInfo"`
	Packages          []spdxPackage      `json:"packages"`
	Relationships     []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	Name             string         `json:"name"`
	SPDXID           string         `json:"SPDXID"`
	VersionInfo      string         `json:"versionInfo"`
	FileName         string         `json:"packageFileName,omitempty"`
	Purpose          string         `json:"primaryPackagePurpose"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	SourceInfo       string         `json:"sourceInfo,omitempty"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	CopyrightText    string         `json:"copyrightText"`
	ExternalRefs     []spdxRef      `json:"externalRefs"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const spdxDocumentID = "SPDXRef-DOCUMENT"

// makeSBOM lists what the linker has put into the binary, as Go itself records it there.
func makeSBOM(req request, b *binary) ([]byte, error) {
	digest := fmt.Sprintf("%x", sha256.Sum256(b.data))
	main := goPackage(b.info.Main.Path, req.version, "APPLICATION")
	main.FileName, main.Checksums = program, []spdxChecksum{{"SHA256", digest}}
	main.LicenseConcluded, main.LicenseDeclared = licence, licence
	main.SourceInfo = buildSettings(b.info)
	doc := spdxDocument{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: spdxDocumentID,
		Name:              fmt.Sprintf("%s %s %s/%s", title, req.version, b.platform.OS, b.platform.Architecture),
		DocumentNamespace: "https://spdx.org/spdxdocs/" + program + "-" + digest,
		CreationInfo:      spdxCreation{req.created.Format(time.RFC3339), []string{"Tool: " + program + "-make-image"}},
		Packages:          []spdxPackage{main, goPackage("stdlib", strings.TrimPrefix(b.info.GoVersion, "go"), "LIBRARY")},
		Relationships:     []spdxRelationship{{spdxDocumentID, "DESCRIBES", main.SPDXID}},
	}
	for _, module := range b.info.Deps {
		doc.Packages = append(doc.Packages, modulePackage(module))
	}
	for _, p := range doc.Packages[1:] {
		doc.Relationships = append(doc.Relationships, spdxRelationship{main.SPDXID, "DEPENDS_ON", p.SPDXID})
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the bill of materials: %w", err)
	}
	return append(out, '\n'), nil
}

// modulePackage describes a module, or what replaces it. Its sum is Go's own, of a module's file tree and not of a
// file, so it is told as origin and not as a checksum.
func modulePackage(module *debug.Module) spdxPackage {
	module = cmp.Or(module.Replace, module)
	p := goPackage(module.Path, module.Version, "LIBRARY")
	if module.Sum != "" {
		p.SourceInfo = "go.sum: " + module.Sum
	}
	return p
}

// notInID is what an SPDX identifier cannot hold.
var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]`)

// goPackage names a package as package-url does for Go, which is how scanners recognise it.
func goPackage(path, version, purpose string) spdxPackage {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		segments[i] = url.PathEscape(segment)
	}
	purl := "pkg:golang/" + strings.Join(segments, "/") + "@" + url.QueryEscape(version)
	return spdxPackage{
		Name: path, VersionInfo: version, Purpose: purpose,
		SPDXID:           "SPDXRef-" + notInID.ReplaceAllString(path+"-"+version, "-"),
		DownloadLocation: "NOASSERTION", LicenseConcluded: "NOASSERTION", LicenseDeclared: "NOASSERTION", CopyrightText: "NOASSERTION",
		ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", purl}},
	}
}

// buildSettings are the compiler, the platform and the build tags that decide what is in the binary.
func buildSettings(info *debug.BuildInfo) string {
	said := []string{info.GoVersion}
	for _, s := range info.Settings {
		said = append(said, s.Key+"="+s.Value)
	}
	return strings.Join(said, " ")
}
