# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training data: records, conversations, encoding, packing, sampling, collation."""
