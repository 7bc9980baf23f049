//go:build ignore

// Command render writes the manifests of the Helm chart beside it, as `helm template`
// does, with Helm's own engine. It fails for values that the chart's schema refuses, and
// for an object that has a field which Kubernetes does not know.
//
// No program of Wrenn depends on Helm, so it is built with modules that are not those of
// go.mod: go run -modfile=packaging/helm.mod packaging/helm/render/main.go
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	chart, release, namespace, version string
	values                             []string
	notes                              bool
}

func run(args []string, out io.Writer) error {
	var s settings
	flags := flag.NewFlagSet("render", flag.ContinueOnError)
	flags.StringVar(&s.chart, "chart", "packaging/helm/wrenn", "directory or archive of the chart")
	flags.StringVar(&s.release, "release", "wrenn", "name of the release")
	flags.StringVar(&s.namespace, "namespace", "wrenn", "namespace of the release")
	flags.StringVar(&s.version, "app-version", "", "version of the images; default the chart's")
	flags.Func("values", "file with values; may be repeated, the last wins", func(name string) error {
		s.values = append(s.values, name)
		return nil
	})
	flags.BoolVar(&s.notes, "notes", false, "write the notes for who installs, in place of the manifests")
	if err := flags.Parse(args); err != nil {
		return err
	}
	files, err := s.render()
	if err != nil {
		return err
	}
	return write(out, files, s.notes)
}

// render returns what the templates of the chart make, by their names.
func (s settings) render() (map[string]string, error) {
	c, err := loader.Load(s.chart)
	if err != nil {
		return nil, err
	}
	if s.version != "" {
		c.Metadata.AppVersion = s.version
	}
	given := map[string]any{}
	for _, name := range s.values {
		more, err := common.ReadValuesFile(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		given = loader.MergeMaps(given, more)
	}
	values, err := util.ToRenderValues(c, given, s.options(), common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, values)
}

func (s settings) options() common.ReleaseOptions {
	return common.ReleaseOptions{Name: s.release, Namespace: s.namespace, Revision: 1, IsInstall: true}
}

// write writes the checked manifests, or the notes.
func write(out io.Writer, files map[string]string, notes bool) error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		if path.Base(name) == "NOTES.txt" {
			if notes {
				fmt.Fprint(out, text)
			}
			continue
		}
		if notes || path.Ext(name) != ".yaml" {
			continue
		}
		if err := writeObjects(out, name, text); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// writeObjects writes the objects of one template.
func writeObjects(out io.Writer, name, text string) error {
	reader := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		object, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		object = bytes.TrimSpace(object)
		if len(object) == 0 {
			continue
		}
		if err := check(object); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, object)
		}
		fmt.Fprintf(out, "---\n# Source: %s\n%s\n", name, object)
	}
}

// operators are the groups of objects that Kubernetes itself does not have.
var operators = []string{"monitoring.coreos.com/v1", "postgresql.cnpg.io/v1", "cert-manager.io/v1"}

// check fails for an object of Kubernetes that its types do not know in full.
func check(object []byte) error {
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	_, kind, err := strict.Decode(object, nil, nil)
	if runtime.IsNotRegisteredError(err) && kind != nil && slices.Contains(operators, kind.GroupVersion().String()) {
		return nil
	}
	return err
}
