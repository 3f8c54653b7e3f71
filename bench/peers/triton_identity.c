/* An identity on Triton's C backend interface: what its wire, core and scheduler cost without any model.
 *
 * The wheel that holds the server ships no headers, so the few functions used are declared here; they are
 * resolved in the server's own library when it loads this one. One input, one output, FP32, host memory. */
#include <stdint.h>
#include <string.h>

typedef struct Error Error;
typedef struct Instance Instance;
typedef struct Request Request;
typedef struct Response Response;
typedef struct Input Input;
typedef struct Output Output;

enum { MEMORY_CPU = 0, RESPONSE_FINAL = 1, RELEASE_ALL = 1 };

extern Error *TRITONBACKEND_RequestInputByIndex(Request *, uint32_t, Input **);
extern Error *TRITONBACKEND_InputProperties(Input *, const char **name, int *datatype, const int64_t **shape,
                                            uint32_t *dims, uint64_t *bytes, uint32_t *buffers);
extern Error *TRITONBACKEND_InputBuffer(Input *, uint32_t, const void **, uint64_t *bytes, int *memory,
                                        int64_t *device);
extern Error *TRITONBACKEND_ResponseNew(Response **, Request *);
extern Error *TRITONBACKEND_ResponseOutput(Response *, Output **, const char *name, int datatype,
                                           const int64_t *shape, uint32_t dims);
extern Error *TRITONBACKEND_OutputBuffer(Output *, void **, uint64_t bytes, int *memory, int64_t *device);
extern Error *TRITONBACKEND_ResponseSend(Response *, uint32_t flags, Error *);
extern Error *TRITONBACKEND_RequestRelease(Request *, uint32_t flags);

static Error *answer(Request *request) {
  Input *input;
  Response *response;
  Output *output;
  const char *name;
  const int64_t *shape;
  const void *from;
  void *to;
  uint64_t bytes, part, done = 0;
  uint32_t dims, buffers;
  int datatype, memory = MEMORY_CPU;
  int64_t device = 0;
  Error *error;
  if ((error = TRITONBACKEND_RequestInputByIndex(request, 0, &input))) return error;
  if ((error = TRITONBACKEND_InputProperties(input, &name, &datatype, &shape, &dims, &bytes, &buffers)))
    return error;
  if ((error = TRITONBACKEND_ResponseNew(&response, request))) return error;
  if (!(error = TRITONBACKEND_ResponseOutput(response, &output, "y", datatype, shape, dims)) &&
      !(error = TRITONBACKEND_OutputBuffer(output, &to, bytes, &memory, &device)))
    for (uint32_t i = 0; i < buffers && !error; ++i) {
      int64_t where = 0;
      int kind = MEMORY_CPU;
      if ((error = TRITONBACKEND_InputBuffer(input, i, &from, &part, &kind, &where))) break;
      memcpy((char *)to + done, from, part);
      done += part;
    }
  return TRITONBACKEND_ResponseSend(response, RESPONSE_FINAL, error);
}

Error *TRITONBACKEND_ModelInstanceExecute(Instance *instance, Request **requests, const uint32_t count) {
  (void)instance;
  for (uint32_t i = 0; i < count; ++i) {
    Error *error = answer(requests[i]);
    (void)error; /* the request could not even be answered: the client's time-out says so */
    TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL);
  }
  return 0;
}
