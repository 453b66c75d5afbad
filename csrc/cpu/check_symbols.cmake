# Fails when an object compiled for one instruction set exports a weak symbol that does not name its ISA: the linker
# may keep that copy for every caller, and an older processor would then run instructions that it does not have.
#   cmake -DNM=… -DOBJECTS=a.o;b.o -P check_symbols.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}")
  foreach(line IN LISTS weak)
    # Mangled, a template argument of type drupe::Isa contains "3IsaE"; DW.ref. is the personality routine's address.
    if(NOT line MATCHES "3IsaE" AND NOT line MATCHES " DW\\.ref\\.")
      list(APPEND offenders "${object}: ${line}")
    endif()
  endforeach()
endforeach()
if(offenders)
  list(JOIN offenders "\n  " text)
  message(FATAL_ERROR "weak symbols without an ISA in their names:\n  ${text}")
endif()
