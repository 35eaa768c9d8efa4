"""What every recurrent operator passes through; the operators lie beside the mixers' layers."""
