package main

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
)

// A resource's inputs are a Go struct: the json tag names a property, the default tag gives its value when it is left
// out, and the prop tag says
//
//	required  it must be there
//	replace   a change of it needs a new object
//	set       the order of its elements does not matter

// defaulted lists the properties that were filled in, under the name by which the released plugin keeps them.
const defaulted = "__defaults"

func setDefaulted(m resource.PropertyMap, key string) {
	list := []resource.PropertyValue{}
	if old := m[defaulted]; old.IsArray() {
		list = slices.Clone(old.ArrayValue())
	}
	m[defaulted] = resource.NewArrayProperty(append(list, resource.NewStringProperty(key)))
}

func isDefaulted(m resource.PropertyMap, key string) bool {
	list := m[defaulted]
	return list.IsArray() && slices.ContainsFunc(list.ArrayValue(), func(v resource.PropertyValue) bool {
		return v.IsString() && v.StringValue() == key
	})
}

// checkInputs returns the inputs with the defaults filled in, and everything that is wrong with them.
func checkInputs(inputs resource.PropertyMap, into any) (resource.PropertyMap, []plugin.CheckFailure) {
	var failures []plugin.CheckFailure
	checked := checkValue("", resource.NewObjectProperty(inputs), reflect.TypeOf(into), &failures)
	return checked.ObjectValue(), failures
}

func checkValue(
	path string, v resource.PropertyValue, t reflect.Type, failures *[]plugin.CheckFailure,
) resource.PropertyValue {
	fail := func(path, reason string) {
		*failures = append(*failures, plugin.CheckFailure{Property: resource.PropertyKey(path), Reason: path + ": " + reason})
	}
	want := func(ok bool, what string) {
		if !ok {
			fail(path, fmt.Sprintf("must be %s, is %s", what, v.TypeString()))
		}
	}
	if v.IsComputed() || v.IsOutput() {
		return v
	}
	switch t.Kind() {
	case reflect.Pointer:
		return checkValue(path, v, t.Elem(), failures)
	case reflect.String:
		want(v.IsString(), "a string")
	case reflect.Bool:
		want(v.IsBool(), "a boolean")
	case reflect.Int, reflect.Int64:
		want(v.IsNumber() && v.NumberValue() == math.Trunc(v.NumberValue()), "an integer")
	case reflect.Slice:
		if want(v.IsArray(), "a list"); v.IsArray() {
			out := make([]resource.PropertyValue, len(v.ArrayValue()))
			for i, e := range v.ArrayValue() {
				out[i] = checkValue(fmt.Sprintf("%s[%d]", path, i), e, t.Elem(), failures)
			}
			return resource.NewArrayProperty(out)
		}
	case reflect.Map:
		if want(v.IsObject(), "a map"); v.IsObject() {
			for k, e := range v.ObjectValue() {
				checkValue(path+"."+string(k), e, t.Elem(), failures)
			}
		}
	case reflect.Struct:
		if want(v.IsObject(), "a map of properties"); !v.IsObject() {
			return v
		}
		if path != "" {
			path += "."
		}
		given := v.ObjectValue()
		out := resource.PropertyMap{defaulted: resource.NewArrayProperty([]resource.PropertyValue{})}
		for field := range fields(t) {
			key := resource.PropertyKey(field.name)
			value, ok := given[key]
			switch {
			case ok && !value.IsNull():
				out[key] = checkValue(path+field.name, value, field.Type, failures)
			case field.has("required"):
				fail(path+field.name, "is required")
			case field.Tag.Get("default") != "":
				var value any
				if err := json.Unmarshal([]byte(field.Tag.Get("default")), &value); err != nil {
					panic(fmt.Sprintf("default of %s: %v", field.name, err))
				}
				out[key] = resource.NewPropertyValue(value)
				setDefaulted(out, field.name)
			}
		}
		for k, value := range given {
			if _, known := fieldOf(t, string(k)); !known && !value.IsNull() && !strings.HasPrefix(string(k), "__") {
				fail(path+string(k), notServed("this property"))
			}
		}
		return resource.NewObjectProperty(out)
	default:
		panic(fmt.Sprintf("%s: no check for a %s", path, t))
	}
	return v
}

// field is one property.
type field struct {
	reflect.StructField
	name string
}

func (f field) has(word string) bool {
	return slices.Contains(strings.Split(f.Tag.Get("prop"), ","), word)
}

func fields(t reflect.Type) func(func(field) bool) {
	return func(yield func(field) bool) {
		for i := range t.NumField() {
			f := t.Field(i)
			if name := f.Tag.Get("json"); name != "" && !yield(field{f, name}) {
				return
			}
		}
	}
}

func fieldOf(t reflect.Type, name string) (field, bool) {
	for f := range fields(t) {
		if f.name == name {
			return f, true
		}
	}
	return field{}, false
}

// diffInputs says what changed, and whether it needs a new object.
func diffInputs(olds, news resource.PropertyMap, as any) plugin.DiffResult {
	t := reflect.TypeOf(as).Elem()
	changes := normal(olds, t).Diff(normal(news, t))
	if changes == nil {
		return plugin.DiffResult{Changes: plugin.DiffNone}
	}
	diff := plugin.NewDetailedDiffFromObjectDiff(changes, false)
	for path, d := range diff {
		if f, ok := fieldOf(t, property(path)); ok && f.has("replace") {
			d.Kind = d.Kind.AsReplace()
			diff[path] = d
		}
	}
	return plugin.DiffResult{Changes: plugin.DiffSome, DetailedDiff: diff}
}

// property is the first part of a path: "envs" of "envs[0]".
func property(path string) string {
	if end := strings.IndexAny(path, ".["); end > 0 {
		return path[:end]
	}
	return path
}

// normal leaves out what does not count as a change: notes such as __defaults, and the order of a set.
func normal(m resource.PropertyMap, t reflect.Type) resource.PropertyMap {
	out := echo(m)
	for f := range fields(t) {
		key := resource.PropertyKey(f.name)
		if list := out[key]; f.has("set") && list.IsArray() {
			sorted := slices.Clone(list.ArrayValue())
			slices.SortFunc(sorted, func(a, b resource.PropertyValue) int {
				return strings.Compare(fmt.Sprint(a.Mappable()), fmt.Sprint(b.Mappable()))
			})
			out[key] = resource.NewArrayProperty(sorted)
		}
	}
	return out
}

// echo is the inputs as outputs show them: without notes and nulls.
func echo(m resource.PropertyMap) resource.PropertyMap {
	out := resource.PropertyMap{}
	for k, v := range m {
		if !v.IsNull() && !strings.HasPrefix(string(k), "__") {
			out[k] = echoValue(v)
		}
	}
	return out
}

func echoValue(v resource.PropertyValue) resource.PropertyValue {
	switch {
	case v.IsObject():
		return resource.NewObjectProperty(echo(v.ObjectValue()))
	case v.IsArray():
		out := make([]resource.PropertyValue, len(v.ArrayValue()))
		for i, e := range v.ArrayValue() {
			out[i] = echoValue(e)
		}
		return resource.NewArrayProperty(out)
	}
	return v
}

// decode fills the struct from inputs that are all known.
func decode(m resource.PropertyMap, into any) error {
	if m.ContainsUnknowns() {
		return fmt.Errorf("an input is not known yet: %v", m.Mappable())
	}
	text, err := json.Marshal(m.Mappable())
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
