"""A pass that removes the notes that torch's exporter leaves in a graph."""

import onnx_ir as ir


class RemoveTraceNotes(ir.passes.InPlacePass):
    """Remove the metadata of the model and of its nodes, and the nodes' documentation.

    They hold stack traces of the machine that traced the graph. Needs nothing of the model, and leaves no such note.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the notes of one model."""
        model.metadata_props.clear()
        for node in model.graph:
            node.metadata_props.clear()
            node.doc_string = None
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that no node has a note."""
        noted = [node.name for node in model.graph if node.metadata_props or node.doc_string]
        if noted:
            raise ir.passes.PostconditionError(f"nodes {noted[:12]} still have notes of the tracing")
