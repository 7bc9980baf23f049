package wire

import (
	"net/http"

	"wrenn.dev"
)

// statuses are the HTTP statuses of the product's codes, in all HTTP APIs.
var statuses = map[wrenn.Code]int{
	wrenn.Invalid:            http.StatusBadRequest,
	wrenn.Unauthenticated:    http.StatusUnauthorized,
	wrenn.PermissionDenied:   http.StatusForbidden,
	wrenn.NotFound:           http.StatusNotFound,
	wrenn.AlreadyExists:      http.StatusConflict,
	wrenn.FailedPrecondition: http.StatusConflict,
	wrenn.Exhausted:          http.StatusTooManyRequests,
	wrenn.Unavailable:        http.StatusServiceUnavailable,
	wrenn.DeadlineExceeded:   http.StatusGatewayTimeout,
	// The client is gone, or the server is stopping and another replica can answer.
	wrenn.Canceled:      http.StatusServiceUnavailable,
	wrenn.Internal:      http.StatusInternalServerError,
	wrenn.NoSpace:       http.StatusInsufficientStorage,
	wrenn.GuestFailed:   http.StatusUnprocessableEntity,
	wrenn.CutByPause:    http.StatusConflict,
	wrenn.NotResponding: http.StatusServiceUnavailable,
}

// HTTPStatus returns the HTTP status of a code; 500 for one that is not known.
func HTTPStatus(code wrenn.Code) int {
	if status, known := statuses[code]; known {
		return status
	}
	return http.StatusInternalServerError
}
