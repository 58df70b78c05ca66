"""How good a network is on PanNuke: the paper's table, nuclei, tissues; as data, text and pictures."""
