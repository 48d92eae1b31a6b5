# torch.save containers and DCP directories.
fathom_add_library(NAME dcp SOURCES dcp_common.cc dcp_metadata.cc dcp_reader.cc dcp_writer.cc pickle.cc
                   pickle_names.cc pickle_tensor.cc pickle_writer.cc zip.cc
                   DEPS fathom_base fathom_numerics)
foreach(name zip pickle dcp)
  fathom_add_test(NAME ${name}_test SOURCES ${name}_test.cc DEPS fathom_dcp)
endforeach()
