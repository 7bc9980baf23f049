package rollback

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRunReversesAndGoesOnAfterErrors(t *testing.T) {
	var got []int
	boom := errors.New("boom")
	var s Stack
	for i := range 3 {
		s.Add(func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Error("a step got a canceled context")
			}
			got = append(got, i)
			if i == 1 {
				return boom
			}
			return nil
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); !errors.Is(err, boom) {
		t.Errorf("Run() = %v, want %v", err, boom)
	}
	if err := s.Run(ctx); err != nil {
		t.Errorf("second Run() = %v", err)
	}
	if !slices.Equal(got, []int{2, 1, 0}) {
		t.Errorf("order = %v", got)
	}
}

func TestKeepForgets(t *testing.T) {
	var s Stack
	s.AddFunc(func() { t.Error("kept work was undone") })
	s.Keep()
	if err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
