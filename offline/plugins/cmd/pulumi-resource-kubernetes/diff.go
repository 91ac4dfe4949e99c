package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type (
	path     []any // of map keys and list indexes
	property = pulumirpc.PropertyDiff
)

// String is the path as Pulumi writes it: spec.ports[0].name, metadata.labels["a.b/c"].
func (p path) String() string {
	var b strings.Builder
	for _, step := range p {
		switch step := step.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", step)
		case string:
			if strings.ContainsAny(step, `."[]`) {
				fmt.Fprintf(&b, `["%s"]`, strings.ReplaceAll(step, `"`, `\"`))
				continue
			}
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(step)
		}
	}
	return b.String()
}

// compare lists what differs between two versions of an object's inputs. A change that immutable says yes to becomes
// a replacement.
func compare(old, new map[string]any, immutable func(path, any) bool) map[string]*property {
	diffs := map[string]*property{}
	var walk func(at path, old, new any)
	walkPart := func(at path, step any, old, new any) {
		walk(append(slices.Clone(at), step), old, new)
	}
	walk = func(at path, old, new any) {
		oldFields, oldMap := old.(map[string]any)
		newFields, newMap := new.(map[string]any)
		oldItems, oldList := old.([]any)
		newItems, newList := new.([]any)
		kind := pulumirpc.PropertyDiff_UPDATE
		switch {
		case old == nil && new == nil:
			return
		case old == nil:
			kind = pulumirpc.PropertyDiff_ADD
		case new == nil:
			kind = pulumirpc.PropertyDiff_DELETE
		case oldMap && newMap:
			for key, value := range oldFields {
				walkPart(at, key, value, newFields[key])
			}
			for key, value := range newFields {
				if oldFields[key] == nil {
					walkPart(at, key, nil, value)
				}
			}
			return
		case oldList && newList:
			for i := range max(len(oldItems), len(newItems)) {
				walkPart(at, i, item(oldItems, i), item(newItems, i))
			}
			return
		case isNumber(old) && isNumber(new):
			if asFloat(old) == asFloat(new) {
				return
			}
		case oldMap || newMap || oldList || newList:
		case old == new:
			return
		}
		if immutable(at, new) {
			kind = map[pulumirpc.PropertyDiff_Kind]pulumirpc.PropertyDiff_Kind{
				pulumirpc.PropertyDiff_ADD:    pulumirpc.PropertyDiff_ADD_REPLACE,
				pulumirpc.PropertyDiff_DELETE: pulumirpc.PropertyDiff_DELETE_REPLACE,
				pulumirpc.PropertyDiff_UPDATE: pulumirpc.PropertyDiff_UPDATE_REPLACE,
			}[kind]
		}
		diffs[at.String()] = &property{Kind: kind, InputDiff: new == nil}
	}
	walk(nil, old, new)
	return diffs
}

func item(items []any, i int) any {
	if i < len(items) {
		return items[i]
	}
	return nil
}

func asFloat(value any) float64 {
	if f, ok := value.(float64); ok {
		return f
	}
	return float64(number(value))
}

// frozen names the fields of a kind that cannot be changed in place: those listed, or with except all others under
// its first entry.
type frozen struct {
	fields []string
	under  string
	except []string
}

var selector = frozen{fields: []string{"spec.selector"}}

// The same fields as the released plugin replaces on. A field that the API server refuses to change but that is not
// listed here fails the update, in both.
var frozenFields = map[string]frozen{
	"apps/v1/Deployment": selector,
	"apps/v1/DaemonSet":  selector,
	"apps/v1/StatefulSet": {fields: []string{
		"spec.podManagementPolicy", "spec.revisionHistoryLimit", "spec.selector", "spec.serviceName",
		"spec.volumeClaimTemplates",
	}},
	"batch/v1/Job": {fields: []string{"spec.completions", "spec.parallelism", "spec.selector", "spec.template"}},
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding": {fields: []string{"roleRef"}},
	"rbac.authorization.k8s.io/v1/RoleBinding":        {fields: []string{"roleRef"}},
	"storage.k8s.io/v1/StorageClass":                  {fields: []string{"parameters", "provisioner"}},
	"v1/PersistentVolumeClaim": {fields: []string{
		"spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeName",
	}},
	// A volume's source, whichever it is.
	"v1/PersistentVolume": {under: "spec", except: []string{
		"accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy",
		"storageClassName", "volumeAttributesClassName", "volumeMode",
	}},
	"v1/Pod":           {under: "spec", except: []string{"activeDeadlineSeconds", "schedulingGates", "tolerations"}},
	"v1/ResourceQuota": {fields: []string{"spec.scopes"}},
	"v1/Service":       {fields: []string{"spec.clusterIP"}},
}

// immutable says which changes of an object need a new one.
func (c *config) immutable(urn resource.URN, object *unstructured.Unstructured) func(path, any) bool {
	rule := frozen{}
	if !isPatch(urn, object.GetKind()) {
		marked := object.Object["immutable"] == true
		switch {
		case isKind(object, "", "Secret"):
			rule.fields = []string{"type"}
			if !c.secretMutable || marked {
				rule.fields = append(rule.fields, "data", "stringData")
			}
		case isKind(object, "", "ConfigMap"):
			if !c.configMapMutable || marked {
				rule.fields = []string{"binaryData", "data"}
			}
		default:
			rule = frozenFields[object.GetAPIVersion()+"/"+object.GetKind()]
		}
	}
	fields := append([]string{"metadata.name", "metadata.namespace"}, rule.fields...)
	return func(at path, value any) bool {
		if slices.ContainsFunc(fields, func(f string) bool { return touches(at, value, strings.Split(f, ".")) }) {
			return true
		}
		if rule.under == "" {
			return false
		}
		if len(at) > 1 {
			return at[0] == rule.under && !slices.Contains(rule.except, fmt.Sprint(at[1]))
		}
		parts, _ := value.(map[string]any)
		for key := range parts {
			if len(at) == 1 && at[0] == rule.under && !slices.Contains(rule.except, key) {
				return true
			}
		}
		return false
	}
}

// touches says whether a change at a path concerns a field: the field itself, a part of it, or a whole that has it.
func touches(at path, value any, field []string) bool {
	for i, key := range field {
		if i < len(at) {
			if at[i] != key {
				return false
			}
			continue
		}
		parts, ok := value.(map[string]any)
		if !ok {
			return false
		}
		if value, ok = parts[key]; !ok {
			return false
		}
	}
	return true
}

// ignore takes the changes out that the ignoreChanges option covers.
func ignore(diffs map[string]*property, ignored []string) error {
	for _, text := range ignored {
		pattern, err := resource.ParsePropertyPath(text)
		if err != nil {
			return fmt.Errorf("ignoreChanges: %q is not a property path: %w", text, err)
		}
		for key := range diffs {
			if at, err := resource.ParsePropertyPath(key); err == nil && pattern.Contains(at) {
				delete(diffs, key)
			}
		}
	}
	return nil
}
