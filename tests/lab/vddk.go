package main

import "net/http"

// vddkRoutes registers what the stand-in VDDK asks for.
func (s *sim) vddkRoutes(*http.ServeMux) {}
