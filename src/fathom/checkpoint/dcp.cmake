# torch.save containers and DCP directories; what the program keeps in them.
fathom_add_library(NAME dcp SOURCES dcp_common.cc dcp_metadata.cc dcp_reader.cc dcp_writer.cc pickle.cc
                   pickle_names.cc pickle_tensor.cc pickle_writer.cc zip.cc zip_crc.cc
                   DEPS fathom_base fathom_numerics)
fathom_add_library(NAME fill_weights SOURCES fill_weights.cc DEPS fathom_model)
fathom_add_library(NAME torch_dist SOURCES dcp_weights.cc megatron_names.cc training_state.cc
                   DEPS fathom_dcp fathom_fill_weights fathom_model)
fathom_add_library(NAME stream SOURCES row_tasks.cc stream_files.cc DEPS fathom_checkpoint fathom_dcp)
fathom_add_library(NAME convert SOURCES cast.cc export_files.cc export_hf.cc export_over.cc export_source.cc DEPS fathom_stream fathom_torch_dist)
fathom_add_library(NAME prepare_spmd SOURCES layout.cc prepare_spmd.cc spmd_group.cc spmd_plan.cc
                   DEPS fathom_stream fathom_torch_dist)
foreach(name zip pickle dcp)
  fathom_add_test(NAME ${name}_test SOURCES ${name}_test.cc DEPS fathom_dcp)
endforeach()
foreach(name megatron_names training_state)
  fathom_add_test(NAME ${name}_test SOURCES ${name}_test.cc DEPS fathom_torch_dist)
endforeach()
fathom_add_test(NAME prepare_spmd_test SOURCES prepare_spmd_test.cc DEPS fathom_prepare_spmd)
fathom_add_test(NAME spmd_group_test SOURCES spmd_group_test.cc DEPS fathom_prepare_spmd)
fathom_add_test(NAME layout_test SOURCES layout_test.cc DEPS fathom_prepare_spmd)
fathom_add_test(NAME spmd_layouts_test SOURCES spmd_layouts_test.cc DEPS fathom_convert fathom_prepare_spmd)
