// Package nodes reads the nodes of a Kubernetes cluster: which exist, which are cordoned,
// and which are out of service.
package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"wrenn.dev/internal/hostjoin"
)

const (
	pageSize  = 250
	maxPages  = 400      // 100,000 nodes, more than Kubernetes allows
	maxAnswer = 64 << 20 // of a page: a node is some 10 KiB
	// outOfService is the taint by which an operator says that a node's machine is off.
	outOfService = "node.kubernetes.io/out-of-service"
)

// State is a node and what operators want of it.
type State struct {
	hostjoin.Node

	Cordoned     bool // kubectl cordon or drain
	OutOfService bool // its machine is off, as an operator says by a taint
}

// API asks Kubernetes for a path, with what the caller of Kubernetes proves itself by. The
// caller closes the body.
type API interface {
	Get(ctx context.Context, path string) (*http.Response, error)
}

// Reader reads the nodes of a cluster. Its service account needs list of nodes.
type Reader struct{ API API }

// page is a NodeList of v1, as far as it is needed.
type page struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []node `json:"items"`
}

type node struct {
	Metadata struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	} `json:"metadata"`
	Spec struct {
		Unschedulable bool `json:"unschedulable"`
		Taints        []struct {
			Key string `json:"key"`
		} `json:"taints"`
	} `json:"spec"`
}

// Nodes returns all nodes of the cluster: the whole list or an error. A list without nodes
// is an error, because a cluster in which hosts joined has some.
func (r Reader) Nodes(ctx context.Context) ([]State, error) {
	var all []State
	query := url.Values{"limit": {fmt.Sprint(pageSize)}}
	for range maxPages {
		got, err := r.page(ctx, "/api/v1/nodes?"+query.Encode())
		if err != nil {
			return nil, err
		}
		for _, n := range got.Items {
			state, err := n.state()
			if err != nil {
				return nil, err
			}
			all = append(all, state)
		}
		if got.Metadata.Continue == "" {
			break
		}
		query.Set("continue", got.Metadata.Continue)
	}
	if len(all) == 0 {
		return nil, errors.New("Kubernetes lists no nodes: is api of [fleet.kubernetes] right?") //nolint:staticcheck // a name
	}
	return all, nil
}

func (n node) state() (State, error) {
	id, err := hostjoin.NewNode(n.Metadata.Name, n.Metadata.UID)
	if err != nil {
		return State{}, err
	}
	s := State{Node: id, Cordoned: n.Spec.Unschedulable}
	for _, taint := range n.Spec.Taints {
		s.OutOfService = s.OutOfService || taint.Key == outOfService
	}
	return s, nil
}

func (r Reader) page(ctx context.Context, path string) (*page, error) {
	resp, err := r.API.Get(ctx, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, fmt.Errorf("the control plane may not list the nodes of Kubernetes (status %d): its service account needs list of nodes", resp.StatusCode)
	default:
		return nil, fmt.Errorf("Kubernetes answered a list of nodes with status %d", resp.StatusCode) //nolint:staticcheck // a name
	}
	var got page
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&got); err != nil || got.Kind != "NodeList" {
		return nil, errors.Join(errors.New("Kubernetes' answer is no list of nodes: is api of [fleet.kubernetes] right?"), err) //nolint:staticcheck // a name
	}
	return &got, nil
}
