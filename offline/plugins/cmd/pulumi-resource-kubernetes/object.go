package main

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// A resource's outputs are the live object plus these entries. The released plugin uses the same names, so either
// plugin can go on with a state that the other has written.
const (
	keyInputs            = "__inputs"
	keyInitialAPIVersion = "__initialApiVersion"
	keyFieldManager      = "__fieldManager"
)

const (
	annotationAutonamed    = "pulumi.com/autonamed"
	annotationSkipAwait    = "pulumi.com/skipAwait"
	annotationTimeout      = "pulumi.com/timeoutSeconds"
	annotationPatchForce   = "pulumi.com/patchForce"
	annotationFieldManager = "pulumi.com/patchFieldManager"
	annotationPropagation  = "pulumi.com/deletionPropagationPolicy"
)

// What the released plugin can also do on these annotations, and this one cannot.
var annotationsNotServed = []string{"pulumi.com/waitFor", "pulumi.com/replaceUnready"}

func unmarshal(props *structpb.Struct) (resource.PropertyMap, error) {
	return plugin.UnmarshalProperties(props, plugin.MarshalOptions{KeepUnknowns: true, KeepSecrets: true})
}

func marshal(props resource.PropertyMap) (*structpb.Struct, error) {
	return plugin.MarshalProperties(props, plugin.MarshalOptions{KeepUnknowns: true, KeepSecrets: true})
}

// toObject drops the secrecy of values, which Kubernetes does not know; unknown values stay resource.Computed.
func toObject(props resource.PropertyMap) *unstructured.Unstructured {
	object := props.MapRepl(dashed, func(v resource.PropertyValue) (any, bool) {
		if v.IsSecret() {
			return toValue(v.SecretValue().Element), true
		}
		if v.IsOutput() {
			if !v.OutputValue().Known {
				return resource.Computed{Element: resource.NewStringProperty("")}, true
			}
			return toValue(v.OutputValue().Element), true
		}
		return nil, false
	})
	return &unstructured.Unstructured{Object: object}
}

func toValue(v resource.PropertyValue) any {
	return toObject(resource.PropertyMap{"v": v}).Object["v"]
}

func toProperties(object *unstructured.Unstructured) resource.PropertyMap {
	return resource.NewPropertyMapFromMapRepl(object.Object, underscored, nil)
}

// The SDKs spell x-kubernetes-… keys (of CustomResourceDefinitions) with underscores.
func dashed(key string) (string, bool) {
	return strings.ReplaceAll(key, "_", "-"), strings.HasPrefix(key, "x_kubernetes_")
}

func underscored(key string) (resource.PropertyKey, bool) {
	return resource.PropertyKey(strings.ReplaceAll(key, "-", "_")), strings.HasPrefix(key, "x-kubernetes-")
}

// checkpoint is what the state keeps of a resource: the live object and how it came about. Values that were secret
// in the inputs are secret in both.
func checkpoint(
	inputs, live *unstructured.Unstructured, from resource.PropertyMap, initialAPIVersion, fieldManager string,
) resource.PropertyMap {
	outputs, in := toProperties(live), toProperties(inputs)
	markSecrets(outputs, from)
	markSecrets(in, from)
	outputs[keyInputs] = resource.NewObjectProperty(in)
	outputs[keyInitialAPIVersion] = resource.NewStringProperty(initialAPIVersion)
	outputs[keyFieldManager] = resource.NewStringProperty(fieldManager)
	return outputs
}

// parseCheckpoint takes a checkpoint apart.
func parseCheckpoint(state resource.PropertyMap) (inputs, live *unstructured.Unstructured) {
	live = toObject(state)
	in, _ := live.Object[keyInputs].(map[string]any)
	if in == nil {
		in = map[string]any{}
	}
	delete(live.Object, keyInputs)
	return &unstructured.Unstructured{Object: in}, live
}

// markSecrets makes secret in out what is secret in from, as deep down as possible; lists as a whole, because their
// order may change. Data of a Secret is always secret.
func markSecrets(out, from resource.PropertyMap) {
	if kind := out["kind"]; kind.IsString() && kind.StringValue() == "Secret" {
		for _, key := range []resource.PropertyKey{"data", "stringData"} {
			if value, ok := out[key]; ok && !value.IsSecret() {
				out[key] = resource.MakeSecret(value)
			}
		}
		return
	}
	for key, value := range from {
		has, ok := out[key]
		switch {
		case !ok || has.IsSecret():
		case has.IsObject() && value.IsObject():
			markSecrets(has.ObjectValue(), value.ObjectValue())
		case value.ContainsSecrets():
			out[key] = resource.MakeSecret(has)
		}
	}
}

// normalize writes inputs the way the API server will (quantities, Secret data), so that they compare equal to what
// comes back, and drops what only the server may set.
func normalize(object *unstructured.Unstructured) *unstructured.Unstructured {
	if !hasUnknown(object.Object) {
		if isKind(object, "", "Secret") {
			normalizeSecret(object.Object)
		} else if typed, err := scheme.Scheme.New(object.GroupVersionKind()); err == nil {
			converter := runtime.DefaultUnstructuredConverter
			if err := converter.FromUnstructured(object.Object, typed); err == nil {
				if full, err := converter.ToUnstructured(typed); err == nil {
					object = &unstructured.Unstructured{Object: prune(full, object.Object).(map[string]any)}
				}
			}
		}
	}
	dropServerFields(object)
	return object
}

func dropServerFields(object *unstructured.Unstructured) {
	if metadata, ok := object.Object["metadata"].(map[string]any); ok {
		for _, key := range []string{
			"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
			"resourceVersion", "uid",
		} {
			delete(metadata, key)
		}
	}
}

// normalizeSecret merges stringData into data, as the API server does.
func normalizeSecret(object map[string]any) {
	data, _ := object["data"].(map[string]any)
	for key, value := range data {
		// The server decodes and encodes again, which takes out line breaks.
		if text, ok := value.(string); ok {
			if decoded, err := base64.StdEncoding.DecodeString(text); err == nil {
				data[key] = base64.StdEncoding.EncodeToString(decoded)
			}
		}
	}
	stringData, ok := object["stringData"].(map[string]any)
	if !ok {
		return
	}
	merged := map[string]any{}
	for key, value := range data {
		merged[key] = value
	}
	for key, value := range stringData {
		text, ok := value.(string)
		if !ok {
			return // The API server will say what is wrong.
		}
		merged[key] = base64.StdEncoding.EncodeToString([]byte(text))
	}
	object["data"] = merged
	delete(object, "stringData")
}

// prune keeps of a value what the shape names too: of a live object, the fields that the inputs had set.
func prune(value, shape any) any {
	switch shape := shape.(type) {
	case map[string]any:
		fields, ok := value.(map[string]any)
		if !ok {
			return value
		}
		kept := map[string]any{}
		for key, part := range shape {
			if field, ok := fields[key]; ok {
				kept[key] = prune(field, part)
			}
		}
		return kept
	case []any:
		items, ok := value.([]any)
		if !ok {
			return value
		}
		kept := []any{}
		for i := 0; i < len(items) && i < len(shape); i++ {
			kept = append(kept, prune(items[i], shape[i]))
		}
		return kept
	}
	return value
}

func hasUnknown(value any) bool {
	switch value := value.(type) {
	case resource.Computed:
		return true
	case map[string]any:
		for _, part := range value {
			if hasUnknown(part) {
				return true
			}
		}
	case []any:
		for _, part := range value {
			if hasUnknown(part) {
				return true
			}
		}
	}
	return false
}

// field finds a value by its path, nil if there is none.
func field(value any, path ...string) any {
	for _, key := range path {
		fields, _ := value.(map[string]any)
		value = fields[key]
	}
	return value
}

func text(value any) string {
	s, _ := value.(string)
	return s
}

// number reads an integer as JSON and properties have it; absent is 0.
func number(value any) int64 {
	switch value := value.(type) {
	case int64:
		return value
	case int32:
		return int64(value)
	case int:
		return int64(value)
	case float64:
		return int64(value)
	}
	return 0
}

func isNumber(value any) bool {
	switch reflect.ValueOf(value).Kind() {
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64:
		return true
	}
	return false
}

func isKind(object *unstructured.Unstructured, group, kind string) bool {
	gvk := object.GroupVersionKind()
	return gvk.Group == group && gvk.Kind == kind
}

// isPatch says whether a resource owns single fields of an object that something else made (NodePatch and the like).
func isPatch(urn resource.URN, kind string) bool {
	return string(urn.Type().Name()) == kind+"Patch"
}

// objectID is a resource's ID.
func objectID(object *unstructured.Unstructured) string {
	if namespace := object.GetNamespace(); namespace != "" {
		return namespace + "/" + object.GetName()
	}
	return object.GetName()
}

func parseID(id string) (namespace, name string) {
	if namespace, name, ok := strings.Cut(id, "/"); ok {
		return namespace, name
	}
	return "", id
}

// apiVersionAndKind reads them from a type token such as kubernetes:apps/v1:StatefulSet.
func apiVersionAndKind(urn resource.URN) (apiVersion, kind string, err error) {
	apiVersion = string(urn.Type().Module().Name())
	if strings.Count(apiVersion, "/") != 1 {
		return "", "", fmt.Errorf("%s is not a Kubernetes type: the form is kubernetes:GROUP/VERSION:Kind", urn.Type())
	}
	return strings.TrimPrefix(apiVersion, "core/"), string(urn.Type().Name()), nil
}

// hasName tells objects with a name, be it unknown yet, from those that need one.
func hasName(object *unstructured.Unstructured) bool {
	name := field(object.Object, "metadata", "name")
	return name != nil && name != ""
}

// setMetadata sets a metadata field unless all of metadata is unknown.
func setMetadata(object *unstructured.Unstructured, value any, path ...string) {
	fields := object.Object
	for _, key := range append([]string{"metadata"}, path[:len(path)-1]...) {
		next, ok := fields[key].(map[string]any)
		if !ok {
			if fields[key] != nil {
				return
			}
			next = map[string]any{}
			fields[key] = next
		}
		fields = next
	}
	fields[path[len(path)-1]] = value
}

func annotationTrue(object *unstructured.Unstructured, name string) bool {
	return annotation(object, name) == "true"
}

func annotation(object *unstructured.Unstructured, name string) string {
	return text(field(object.Object, "metadata", "annotations", name))
}
