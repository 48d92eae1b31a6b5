# torch.save containers and DCP directories.
fathom_add_library(NAME dcp SOURCES pickle.cc pickle_names.cc pickle_tensor.cc pickle_writer.cc zip.cc
                   DEPS fathom_base fathom_numerics)
fathom_add_test(NAME zip_test SOURCES zip_test.cc DEPS fathom_dcp)
fathom_add_test(NAME pickle_test SOURCES pickle_test.cc DEPS fathom_dcp)
