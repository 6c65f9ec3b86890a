/*
 * npy.h - arrays in NumPy's .npy files, for the `run` executable. Internal.
 */
#ifndef LLMC_NPY_H
#define LLMC_NPY_H

#include "llmc.h"

/* Each returns NULL, or what is wrong in a few words. Little-endian, C order only. */
const char *npy_read(const char *path, llmc_tensor *tensor); /* data is to be freed */
const char *npy_write(const char *path, const llmc_tensor *tensor);

/* The elements of a file that holds nothing else; the tensor's dtype and shape say how many there must be. */
const char *npy_read_raw(const char *path, llmc_tensor *tensor);

size_t npy_bytes(const llmc_tensor *tensor); /* of the elements; SIZE_MAX if that does not fit */

#endif
